"""Find updates in the journal that arrived after their round had ended without them.

A strategy with rounds drops such an update, and writes no record about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.records.event_log import EventLog


@dataclass(frozen=True)
class LateUpdate:
    """Update of a round that had ended; ``time`` is its arrival in unix seconds."""

    site: str
    round: int
    time: float

    @property
    def reason(self) -> str:
        return f"its update of round {self.round} arrived after the round had ended; it does not count"


@dataclass
class LateUpdateFinder:
    """Reads the records of a campaign whose strategy has rounds, in their order, and finds the late updates."""

    rounds: dict[tuple[str, str], int] = field(default_factory=dict)  # site, identity of its training -> round
    ended: int = 0  # the newest round with a model

    def read(self, record: Mapping[str, Any]) -> LateUpdate | None:
        """Read the next record; return the late update if it is one."""
        match record["event"]:
            case "task_done" if record.get("app") == "local_train":
                trained = str((record.get("result") or {}).get("task_id"))
                self.rounds[str(record.get("site")), trained] = int(record.get("round") or 0)
            case "aggregated":
                self.ended = max(self.ended, int(record.get("version") or 0))
            case "strategy_event" if record.get("kind") == "UpdateArrived":
                return self._arrived(record.get("fields") or {}, float(record["time"]))
        return None

    def _arrived(self, fields: Mapping[str, Any], time: float) -> LateUpdate | None:
        site = str(fields.get("site"))
        number = self.rounds.get((site, str(fields.get("task_id"))))
        return LateUpdate(site, number, time) if number is not None and number <= self.ended else None


def late_updates(journal: EventLog) -> list[LateUpdate]:
    """Return the late updates in the order of the journal; none if the strategy has no rounds."""
    if journal.period != "round":
        return []
    finder = LateUpdateFinder()
    return [late for event in journal.events if (late := finder.read(event)) is not None]

"""The recorded events of earlier drivers, and the campaign's clock over all its drivers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apps.base.errors import CrossfedError
from workflows.records.event_log import EventLog, down_spans
from workflows.records.journal import Journal, Record
from workflows.strategies.base import (
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    SiteFacts,
    SiteFailed,
    TimerFired,
    UpdateArrived,
)

EVENTS = {
    kind.__name__: kind for kind in (CampaignStarted, BlockStarted, BlockEnded, UpdateArrived, SiteFailed, TimerFired)
}


def decode_event(kind: str, fields: dict[str, Any]) -> Event:
    """Return the event that ``asdict`` turned into plain values."""
    if kind == "CampaignStarted":
        fields = {**fields, "sites": tuple(SiteFacts(**facts) for facts in fields["sites"])}
    return EVENTS[kind](**fields)


def recorded_events(journal: Journal) -> list[Record]:
    """Return the records of the strategy's events, less those that a driver has withdrawn to have them again."""
    withdrawn = [(r["since"], r["seq"]) for r in journal.events("failures_forgotten") if r["since"]]
    events = journal.events("strategy_event")
    return [r for r in events if not any(since <= r["seq"] < end for since, end in withdrawn)]


def open_failures(journal: Journal, events: Sequence[Record]) -> list[Record]:
    """Return the failures of sites among ``events`` that happened since the newest model."""
    newest = max((r["seq"] for r in journal.events("aggregated")), default=0)
    return [r for r in events if r["kind"] == "SiteFailed" and r["seq"] > newest]


def forget_failures(journal: Journal) -> None:
    """Record that the next driver continues from before the first failure since the newest model.

    What is withdrawn is an end of the history, never a part of its middle, so the rest happened exactly as recorded.
    Updates in it arrive again without being trained again.
    """
    failed = open_failures(journal, recorded_events(journal))
    withdraw_since(journal, failed[0]["seq"] if failed else None)


def withdraw_since(journal: Journal, since: int | None) -> None:
    """Record that the strategy's events from a record on are withdrawn; None: that there are none to withdraw."""
    failed = open_failures(journal, recorded_events(journal))
    tasks = [r["fields"]["task"] for r in failed if since is not None and r["seq"] >= since]
    journal.write("failures_forgotten", tasks=tasks, since=since)


def require_same_aggregation(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to make a model otherwise than the journal records it.

    Args:
        recorded: the ``aggregated`` record of the version.
        asked: what the replayed strategy asks for: ``weights`` by site, ``updates`` and earlier ``models``.

    Raises:
        CrossfedError: names the version and the first field that differs.
    """
    for field, value in asked.items():
        before = recorded[field]
        if field == "models":  # JSON has text as keys only
            before, value = {str(k): v for k, v in before.items()}, {str(k): v for k, v in value.items()}
        if before != value:
            raise CrossfedError(
                f"the replay makes model {recorded['version']} with {field} {value}, the journal records {before}",
                round=recorded["version"],
                remedy="Resume with the code and the campaign that the run was begun with",
            )


class Clock:
    """Seconds since the campaign began; it stands still while no driver runs.

    A timer that was due in the meantime fires when its seconds have passed with a driver, and a site does not look
    slow because no driver was there to take its update.
    """

    def __init__(self, journal: Journal, opened: float, clock: Callable[[], float] = time.time) -> None:
        self.opened, self.clock = opened, clock
        self.absences = down_spans(EventLog(tuple(journal.records)))
        self.absent_s = 0.0
        self.as_of(clock())

    def as_of(self, moment: float) -> None:
        """Count only absences that ended before this UNIX time: the replay computes as the earlier driver did."""
        self.absent_s = sum(end - start for start, end in self.absences if end <= moment)

    def now(self) -> float:
        """Return the seconds since the campaign began."""
        return self.clock() - self.opened - self.absent_s

    def age_s(self) -> float:
        """Return the seconds since the campaign began with those in which no driver ran."""
        return self.clock() - self.opened

    def unix(self, time_s: float) -> float:
        """Return the UNIX time of a moment of the campaign, if a driver runs until then."""
        return self.opened + self.absent_s + time_s

"""Rounds as the journal tells of them: losses, bytes and seconds of each.

Of a strategy without rounds these are the versions of the model; bytes are those since the version before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.event_log import IN_APPS, OUT_APPS, EventLog
from workflows.journal import Journal, Record


@dataclass
class RoundSummary:
    """One round; loss is the unweighted mean over the tasks, in nats."""

    number: int
    global_loss: float
    site_losses: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0


def summaries(journal: Journal, with_sites: bool) -> list[RoundSummary]:
    """The rounds whose evaluation is complete, in order."""
    losses: dict[int, dict[str, float]] = {}
    moved: dict[int, int] = {}
    ends: dict[int, float] = {}
    expected: dict[int, set[str]] = {0: {"global"}}
    records = list(journal.records)
    by_round = EventLog(tuple(records[:1])).period == "round"
    for record in records:
        if record["event"] == "aggregated":
            expected[record["round"]] = {"global", *(_new_sites(record) if with_sites else ())}
        if record["event"] != "task_done":
            continue
        number, result = record["round"], record["result"]
        if record["app"] == "evaluate":
            losses.setdefault(number, {})[result["who"]] = result["mean_loss"]
        elif record["app"] in (*OUT_APPS, *IN_APPS):
            number = number if by_round else len(expected)
            moved[number] = moved.get(number, 0) + result["nbytes_moved"]
        elif record["app"] in ("aggregate", "advance", "prepare"):
            ends[number] = record["ended"]
    return [
        _summary(number, who, moved, ends)
        for number, who in sorted(losses.items())
        if expected.get(number, {"nobody"}) <= who.keys()
    ]


def _new_sites(record: Record) -> list[str]:
    """The sites whose updates are in this model and in none before it: those that are scored with it."""
    if "updates" not in record:
        return list(record["weights"])
    return [update["site"] for update in record["updates"] if update["new"]]


def _summary(number: int, who: dict[str, float], moved: dict[int, int], ends: dict[int, float]) -> RoundSummary:
    before = max((n for n in ends if n < number), default=None)
    seconds = ends[number] - ends[before] if before is not None and number in ends else 0.0
    sites = {name: loss for name, loss in who.items() if name != "global"}
    return RoundSummary(number, who["global"], sites, moved.get(number, 0), seconds)

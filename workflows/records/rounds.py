"""Rounds as the journal tells of them: losses, bytes and seconds of each.

Of a strategy without rounds these are the versions of the model; bytes are those since the version before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from workflows.records.event_log import EventLog, moved_nbytes
from workflows.records.journal import Journal, Record
from workflows.records.timeline import build_timeline, round_lengths


@dataclass
class RoundSummary:
    """One round; loss is the unweighted mean over the tasks, in nats; seconds and bytes are those of the report."""

    number: int
    global_loss: float
    site_losses: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0


def summaries(journal: Journal, with_sites: bool, shown: Collection[int] = ()) -> list[RoundSummary]:
    """The rounds whose evaluation is complete, in order, but for those that were shown already."""
    losses: dict[int, dict[str, float]] = {}
    expected: dict[int, set[str]] = {0: {"global"}}
    records = list(journal.records)
    for record in records:
        if record["event"] == "aggregated":
            expected[record["round"]] = {"global", *(_new_sites(record) if with_sites else ())}
        elif record["event"] == "task_done" and record["app"] == "evaluate":
            losses.setdefault(record["round"], {})[record["result"]["who"]] = record["result"]["mean_loss"]
    told = [n for n, who in sorted(losses.items()) if n not in shown and expected.get(n, {"nobody"}) <= who.keys()]
    if not told:  # a terminal asks several times a second, and a timeline takes its time
        return []
    log = EventLog(tuple(records))
    nbytes, lengths = moved_nbytes(log), round_lengths(build_timeline(log, ()))
    return [
        _summary(number, losses[number], nbytes[number, True] + nbytes[number, False], lengths.get(number, 0.0))
        for number in told
    ]


def _new_sites(record: Record) -> list[str]:
    """The sites whose updates are in this model and in none before it: those that are scored with it."""
    if "updates" not in record:
        return list(record["weights"])
    return [update["site"] for update in record["updates"] if update["new"]]


def _summary(number: int, who: dict[str, float], nbytes: int, seconds: float) -> RoundSummary:
    sites = {name: loss for name, loss in who.items() if name != "global"}
    return RoundSummary(number, who["global"], sites, nbytes, seconds)

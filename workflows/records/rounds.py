"""Losses, bytes and seconds of each round, read from the journal.

If the strategy has no rounds, these are the versions of the model; bytes are those since the version before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from workflows.records.event_log import EventLog, moved_nbytes
from workflows.records.journal import Journal, Record
from workflows.records.timeline import build_timeline, round_lengths


@dataclass
class RoundSummary:
    """Summary of one round: unweighted mean losses over the tasks in nats, moved bytes, seconds."""

    number: int
    global_loss: float
    site_losses: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0


def summaries(journal: Journal, with_sites: bool, shown: Collection[int] = ()) -> list[RoundSummary]:
    """Return the rounds whose evaluation is complete, in order, without those that were shown already.

    Args:
        journal: of the campaign.
        with_sites: whether the sites' models are evaluated too.
        shown: numbers of rounds to leave out.
    """
    losses: dict[int, dict[str, float]] = {}
    expected: dict[int, set[str]] = {0: {"global"}}
    records = list(journal.records)
    for record in records:
        if record["event"] == "aggregated":
            expected[record["round"]] = {"global", *(_new_sites(record) if with_sites else ())}
        elif record["event"] == "task_done" and record["app"] == "evaluate":
            losses.setdefault(record["round"], {})[record["result"]["who"]] = record["result"]["mean_loss"]
    complete = [n for n, models in sorted(losses.items()) if n in expected and expected[n] <= models.keys()]
    new = [number for number in complete if number not in shown]
    if not new:  # the terminal asks several times a second, and a timeline is slow to build
        return []
    log = EventLog(tuple(records))
    nbytes, lengths = moved_nbytes(log), round_lengths(build_timeline(log, ()))
    return [
        _summary(number, losses[number], nbytes[number, True] + nbytes[number, False], lengths.get(number, 0.0))
        for number in new
    ]


def _new_sites(record: Record) -> list[str]:
    """Return the sites whose updates are in this model for the first time: those that are scored with it."""
    if "updates" not in record:
        return list(record["weights"])
    return [update["site"] for update in record["updates"] if update["new"]]


def _summary(number: int, losses: dict[str, float], nbytes: int, seconds: float) -> RoundSummary:
    sites = {model: loss for model, loss in losses.items() if model != "global"}
    return RoundSummary(number, losses["global"], sites, nbytes, seconds)

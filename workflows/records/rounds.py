"""Losses, bytes and seconds of each round, read from the journal while the campaign runs.

If the strategy has no rounds, these are the versions of the model; bytes are those since the version before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from workflows.records.driver_times import DownSpans, OneClock
from workflows.records.event_log import AT_SITES, as_task_run, moves, period_of
from workflows.records.journal import Record
from workflows.records.scores import GLOBAL
from workflows.records.spans import covered_s


@dataclass(frozen=True)
class RoundSummary:
    """Summary of one round: unweighted mean losses over the tasks in nats per token, moved bytes, seconds.

    Attributes:
        global_loss: None if the campaign does not score the model of this round.
    """

    number: int
    global_loss: float | None
    site_losses: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0
    seconds: float = 0.0


class RoundReader:
    """Reads the records of a campaign in their order, each once, so that a round costs the same however many are done.

    Args:
        with_sites: whether the sites' models are scored with the global one.
        every: the model of each so-many-th round is scored, and that of the last one.
        rounds: planned.
        period: what the campaign counts, ``round`` or ``version``.
    """

    def __init__(self, with_sites: bool, every: int = 1, rounds: int = 0, period: str = "round") -> None:
        self.with_sites, self.every, self.period = with_sites, every, period
        self.last_rounds = {rounds}  # a resume may have raised their number; the earlier last one was scored too
        self.clock, self.down = OneClock(), DownSpans()
        self.losses: dict[int, dict[str, float]] = defaultdict(dict)
        self.expected: dict[int, set[str]] = {0: {GLOBAL}}
        self.started: dict[int, float] = {}  # when the first task of a round began at a site
        self.made: dict[int, float] = {}  # when the model of a round was made
        self.nbytes: Counter[int] = Counter()
        self.open: set[int] = {0}  # rounds that were begun and not returned yet
        self.opened = 0.0  # when the campaign began
        self.version = 1  # that is made next, if there are no rounds

    def read(self, records: Iterable[Record]) -> list[RoundSummary]:
        """Read the next records; return the rounds that are complete by them, in order.

        A round is complete when its model is made and, if the campaign scores it, all its scores are there. One that is
        not scored is kept back while an earlier one is being scored.
        """
        for record in records:
            self._read(self.clock.correct(record))
        complete: list[RoundSummary] = []
        waiting = False
        for number in sorted(self.open):
            scored = self._is_scored(number)
            if self._is_complete(number) and (scored or not waiting):
                complete.append(self._summary(number))
            waiting = waiting or (scored and not self._is_complete(number))
        self.open -= {summary.number for summary in complete}
        return complete

    def _read(self, record: Record) -> None:
        self.down.read(record)
        match record["event"]:
            case "campaign_opened" | "campaign_changed":
                self.last_rounds.add(record.get("rounds") or 0)
                if record["event"] == "campaign_opened":
                    self.opened = record["time"]
                    self.period = period_of(record.get("campaign"))
            case "aggregated":
                self._aggregated(record)
            case "task_done":
                self._task_done(record)

    def _aggregated(self, record: Record) -> None:
        number = record["round"]
        self.expected[number] = {GLOBAL, *(_new_sites(record) if self.with_sites else ())}
        self.open.add(number)
        if self.period == "version":
            self.version, self.made[number] = number + 1, record["time"]

    def _task_done(self, record: Record) -> None:
        if record["app"] == "evaluate":
            self.losses[record["round"]][record["result"]["who"]] = record["result"]["mean_loss"]
            return
        task = as_task_run(record, self.opened)
        if task.app == "aggregate" and self.period == "round":
            self.made.setdefault(task.round, task.ended)
        if task.app in AT_SITES:
            number = task.round if self.period == "round" else self.version
            self.nbytes[number] += sum(move.nbytes for move in moves([task]))
            self.started[number] = min(self.started.get(number, task.started), task.started)

    def _is_scored(self, number: int) -> bool:
        return number % self.every == 0 or number in self.last_rounds

    def _is_complete(self, number: int) -> bool:
        if self._is_scored(number):
            return self.expected[number] <= self.losses[number].keys()
        return number in self.made

    def _summary(self, number: int) -> RoundSummary:
        losses = self.losses.pop(number, {})
        sites = {model: loss for model, loss in losses.items() if model != GLOBAL}
        return RoundSummary(number, losses.get(GLOBAL), sites, self.nbytes[number], self._seconds(number))

    def _seconds(self, number: int) -> float:
        """Return the seconds from the first task of a round to its model, without those without a driver."""
        start = self.started.get(number)
        if self.period == "version" and number > 1:
            start = self.made.get(number - 1)
        end = self.made.get(number)
        if start is None or end is None or number == 0:
            return 0.0
        down = [(down_start - start, down_end - start) for down_start, down_end in self.down.spans]
        return max(0.0, end - start - covered_s(down, end - start))


def _new_sites(record: Record) -> list[str]:
    """Return the sites whose updates are in this model for the first time: those that are scored with it."""
    if "updates" not in record:
        return list(record["weights"])
    return [update["site"] for update in record["updates"] if update["new"]]

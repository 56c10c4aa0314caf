"""Compute the numbers of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workflows.records.event_log import EventLog, full_model_nbytes, moves, trainings
from workflows.records.scores import GLOBAL, Verdict, differs, verdict
from workflows.reporting.run_record import RunRecord

if TYPE_CHECKING:
    from pandas import Series


@dataclass(frozen=True)
class RunSummary:
    """Numbers for the text of the report; losses are means over the tasks in nats per token.

    Attributes:
        done: rounds whose model was made.
        scored: how many of them were scored, without round 0.
        rounds: the newest round that was scored.
        last_of_site: the newest round in which each site's model was scored.
        global_wins: tasks on which the global model is better than every site's.
        owner_wins: tasks on which the model of a site that trains on the task is better.
        close: tasks on which neither is: the differences are within the scatter of the samples.
        compared: tasks on which the global model and some site's were scored.
        verdict: on the last global model.
    """

    state: str
    finished: bool
    done: int
    scored: int
    rounds: int
    loss_first: float | None
    loss_last: float | None
    error_first: float | None
    error_last: float | None
    site_losses: Mapping[str, float]
    last_of_site: Mapping[str, int]
    global_wins: tuple[str, ...]
    owner_wins: tuple[str, ...]
    compared: int
    tokens: int
    nbytes_moved: int
    nbytes_full: int | None
    wall_s: float
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def best_site(self) -> str | None:
        return min(self.site_losses, key=self.site_losses.__getitem__, default=None)

    @property
    def close(self) -> int:
        return self.compared - len(self.global_wins) - len(self.owner_wins)


def summarize(run: RunRecord) -> RunSummary:
    """Compute the summary; a task counts as compared if the global model and some site were scored on it."""
    means = run.mean_losses
    lines = {model: means[model].dropna() for model in run.models}
    ends = {model: float(line.iloc[-1]) for model, line in lines.items() if len(line)}
    scored = lines[GLOBAL] if GLOBAL in ends else None
    rounds = 0 if scored is None else int(scored.index[-1])
    wins, owner_wins, compared = _compare(run)
    moved, full = moves(run.tasks), full_model_nbytes(run.tasks)
    finished, state = _state(run.journal)
    return RunSummary(
        state=state,
        finished=finished,
        done=max([rounds, *(int(event["version"]) for event in run.journal.named("aggregated"))]),
        scored=0 if scored is None else sum(number > 0 for number in scored.index),
        rounds=rounds,
        loss_first=None if scored is None else float(scored.iloc[0]),
        loss_last=ends.get(GLOBAL),
        error_first=None if scored is None else known(run.mean_errors.loc[int(scored.index[0]), GLOBAL]),
        error_last=None if scored is None else known(run.mean_errors.loc[rounds, GLOBAL]),
        site_losses={model: loss for model, loss in ends.items() if model != GLOBAL},
        last_of_site={model: int(lines[model].index[-1]) for model in ends if model != GLOBAL},
        global_wins=wins,
        owner_wins=owner_wins,
        compared=compared,
        tokens=sum(int(task.result.get("tokens") or 0) for task in trainings(run.tasks)),
        nbytes_moved=sum(move.nbytes for move in moved),
        nbytes_full=full * len(moved) if full is not None else None,
        wall_s=run.timeline.length_s,
        verdict=verdict(run.tables.scores, run.period),
    )


def known(value: float) -> float | None:
    """Return a value of a table, or None where it is missing."""
    return None if value != value else float(value)


def _state(journal: EventLog) -> tuple[bool, str]:
    if journal.named("campaign_finished"):
        return True, "finished"
    drivers = [event for event in journal.events if event["event"] in ("driver_started", "driver_stopped")]
    if drivers and drivers[-1]["event"] == "driver_stopped":
        return False, f"unfinished: the driver stopped ({drivers[-1].get('reason', 'no reason given')})"
    return False, "unfinished: still running, or its driver was killed"


def _compare(run: RunRecord) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return the tasks where the global model is better than every site's, those where an owner's is, and the count.

    A difference that the scatter of the samples explains is none.
    """
    final, errors = run.final_losses, run.final_errors
    wins, owner_wins, compared = [], [], 0
    for task, losses in final.iterrows() if GLOBAL in final else ():
        sites = losses.drop(GLOBAL).dropna()
        if losses[GLOBAL] == losses[GLOBAL] and len(sites):
            compared += 1
            owned = sites.reindex([site for site in run.owners[str(task)] if site in sites])
            if is_below(losses, errors.loc[task], GLOBAL, str(sites.idxmin())):
                wins.append(str(task))
            elif len(owned) and is_below(losses, errors.loc[task], str(owned.idxmin()), GLOBAL):
                owner_wins.append(str(task))
    return tuple(wins), tuple(owner_wins), compared


def is_below(losses: Series, errors: Series, model: str, other: str) -> bool:
    """Return whether a model's loss on a task is lower than another's by more than the scatter of the samples."""
    difference, scale = losses[model] - losses[other], losses[other]
    return bool(difference < 0 and differs(difference, known(errors[model]), known(errors[other]), scale=scale))


def lowest_models(run: RunRecord) -> dict[str, str]:
    """Return the model of each task that is below all others by more than the scatter of the samples, if any is."""
    lowest = {}
    for task, losses in run.final_losses.iterrows():
        ranked = losses.dropna().sort_values(kind="stable").index
        if len(ranked) > 1 and is_below(losses, run.final_errors.loc[task], str(ranked[0]), str(ranked[1])):
            lowest[str(task)] = str(ranked[0])
    return lowest

"""Read a run directory for the report, and compute the numbers of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from workflows.console.units import plural
from workflows.records.batch_jobs import BatchJob, batch_jobs
from workflows.records.event_log import EventLog, full_model_nbytes, moves, period_of, read_events, task_runs, trainings
from workflows.records.site_jobs import SiteJobs, site_jobs
from workflows.records.timeline import Timeline
from workflows.records.timeline_building import build_timeline
from workflows.reporting.figure_style import GLOBAL

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS_COLUMNS = ("round", "model", "task", "loss")


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run directory.

    Attributes:
        losses: one row per round, columns (model, task).
        notes: about what could not be read.
    """

    directory: Path
    campaign: Mapping[str, Any]
    campaign_text: str
    environment: Mapping[str, Any]
    losses: DataFrame
    journal: EventLog
    notes: tuple[str, ...] = ()

    @cached_property
    def sites(self) -> tuple[str, ...]:
        return tuple(map(str, self.campaign["sites"]))

    @cached_property
    def owners(self) -> dict[str, list[str]]:
        """Scored tasks, each with the sites that train on it, in the order of the sites."""
        scored = dict.fromkeys(task for _, task in self.losses.columns)
        held = _held_tasks(self.campaign, list(scored))
        ordered = [task for tasks in held.values() for task in tasks if task in scored]
        return {task: [s for s, tasks in held.items() if task in tasks] for task in [*ordered, *scored]}

    @cached_property
    def models(self) -> list[str]:
        scored = {model for model, _ in self.losses.columns}
        return [model for model in (GLOBAL, *self.sites) if model in scored]

    @cached_property
    def mean_losses(self) -> DataFrame:
        """Unweighted mean over the tasks by round and model; missing where a single task is missing."""
        import pandas

        tasks = list(self.owners)
        by_model = {model: self.losses[model].reindex(columns=tasks) for model in self.models}
        means = {model: table.mean(axis=1, skipna=False) for model, table in by_model.items()}
        return pandas.DataFrame(means, index=self.losses.index)

    @cached_property
    def final_losses(self) -> DataFrame:
        """The last loss of each model on each task."""
        import pandas

        last = {model: _last_scored(self.losses[model]) for model in self.models}
        return pandas.DataFrame(last, columns=self.models).reindex(list(self.owners))

    @property
    def period(self) -> str:
        """Unit that the campaign counts: ``round`` or ``version``."""
        return period_of(self.campaign)

    @cached_property
    def timeline(self) -> Timeline:
        return build_timeline(self.journal, self.sites)

    @cached_property
    def jobs(self) -> tuple[BatchJob, ...]:
        entries = self.campaign["sites"].items()
        per_round = [str(site) for site, entry in entries if (entry or {}).get("reuse") == "per_round"]
        return batch_jobs(self.journal, per_round)

    @cached_property
    def site_jobs(self) -> list[SiteJobs]:
        """The sums of the batch sites; empty where there were no batch jobs."""
        return site_jobs(self.journal, self.jobs)


def _held_tasks(campaign: Mapping[str, Any], scored: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the tasks of each site as the campaign deals them; if that fails, those named in the campaign."""
    from data.partition import deal_tasks

    named = {str(site): (entry or {}).get("tasks") for site, entry in campaign["sites"].items()}
    try:
        return deal_tasks(named, scored)
    except ValueError:
        return {site: tasks or [] for site, tasks in named.items()}


def _last_scored(losses: DataFrame) -> Any:
    scored = losses.dropna(how="all")
    return scored.iloc[-1] if len(scored) else losses.iloc[-1]


def load_run(directory: Path) -> RunRecord:
    """Read a run directory, finished or not.

    Raises:
        UserMistake: it is no run directory, or it is damaged.
    """
    if not directory.is_dir():
        raise _unreadable(directory, "no such run directory")
    campaign, text = _load_campaign(directory / "campaign.yaml")
    try:
        journal = read_events(directory / "journal.jsonl")
    except (OSError, ValueError) as error:
        raise _unreadable(directory / "journal.jsonl", f"is not a journal: {error}") from error
    losses, notes = _load_losses(directory / "metrics.csv")
    environment = _load_environment(directory)
    return RunRecord(directory, campaign, text, environment, losses, journal, (*journal.notes, *notes))


def _unreadable(path: Path, reason: str) -> UserMistake:
    return UserMistake(f"{path}: {reason}", file=str(path))


def _load_campaign(path: Path) -> tuple[dict[str, Any], str]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        campaign = yaml.safe_load(text)
    except OSError as error:
        raise _unreadable(path, "cannot be read; is this a run directory?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, "is not YAML: " + " ".join(str(error).split())) from error
    if not _names_sites(campaign):
        raise _unreadable(path, "is not a resolved campaign: it does not map each site to its settings")
    return campaign, text


def _names_sites(campaign: Any) -> bool:
    sites = campaign.get("sites") if isinstance(campaign, dict) else None
    if not isinstance(sites, dict) or not all(isinstance(entry or {}, dict) for entry in sites.values()):
        return False
    return all(isinstance((entry or {}).get("tasks") or [], list) for entry in sites.values())


def _load_environment(directory: Path) -> dict[str, Any]:
    """Read the record of the environment; empty if it cannot be read, because the report does not need it."""
    try:
        record = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _load_losses(path: Path) -> tuple[DataFrame, tuple[str, ...]]:
    """Read the losses by round and (model, task), with notes on those not finite; of repeated rows the last counts."""
    import pandas

    table = pandas.DataFrame(columns=list(METRICS_COLUMNS))
    try:
        if path.exists():
            table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        table = table[list(METRICS_COLUMNS)].drop_duplicates(["round", "model", "task"], keep="last")
        table["round"] = table["round"].astype(int)
    except (KeyError, ValueError, OSError) as error:
        wanted = ", ".join(METRICS_COLUMNS)
        raise _unreadable(path, f"is not a metrics table with the columns {wanted}") from error
    losses = pandas.to_numeric(table["loss"], errors="coerce").astype(float)
    table["loss"] = losses.where(losses.abs() < float("inf"))
    notes = _divergence(table[table["loss"].isna()])
    order = [tuple(pair) for pair in table[["model", "task"]].drop_duplicates().to_numpy()]
    wide = table.pivot(index="round", columns=["model", "task"], values="loss").sort_index()
    return wide.reindex(columns=pandas.MultiIndex.from_tuples(order, names=["model", "task"])), notes


def _divergence(bad: DataFrame) -> tuple[str, ...]:
    """Return a warning about losses that are not finite; the report then covers the rounds before."""
    if not len(bad):
        return ()
    first = bad.sort_values("round", kind="stable").iloc[0]
    where = f"the first in round {first['round']} (model {first['model']}, task {first['task']})"
    return (f"{plural(len(bad), 'loss', 'losses')} not finite and left out, {where}.",)


@dataclass(frozen=True)
class RunSummary:
    """Numbers for the text of the report; losses are means over the tasks."""

    state: str
    finished: bool
    rounds: int
    loss_first: float | None
    loss_last: float | None
    site_losses: Mapping[str, float]
    global_wins: tuple[str, ...]
    owner_wins: tuple[str, ...]
    compared: int
    tokens: int
    nbytes_moved: int
    nbytes_full: int | None
    wall_s: float

    @property
    def best_site(self) -> str | None:
        return min(self.site_losses, key=self.site_losses.__getitem__, default=None)


def summarize(run: RunRecord) -> RunSummary:
    """Compute the summary; a task counts as compared if the global model and some site were scored on it."""
    final, means = run.final_losses, run.mean_losses
    lines = {model: means[model].dropna() for model in run.models}
    ends = {model: float(line.iloc[-1]) for model, line in lines.items() if len(line)}
    scored = lines[GLOBAL] if GLOBAL in ends else None
    wins, owner_wins, compared = _compare(final, run.owners)
    tasks = task_runs(run.journal)
    moved, full = moves(tasks), full_model_nbytes(tasks)
    finished, state = _state(run.journal)
    return RunSummary(
        state=state,
        finished=finished,
        rounds=0 if scored is None else int(scored.index[-1]),
        loss_first=None if scored is None else float(scored.iloc[0]),
        loss_last=ends.get(GLOBAL),
        site_losses={model: loss for model, loss in ends.items() if model != GLOBAL},
        global_wins=wins,
        owner_wins=owner_wins,
        compared=compared,
        tokens=sum(int(task.result.get("tokens") or 0) for task in trainings(tasks)),
        nbytes_moved=sum(move.nbytes for move in moved),
        nbytes_full=full * len(moved) if full is not None else None,
        wall_s=run.timeline.length_s,
    )


def _state(journal: EventLog) -> tuple[bool, str]:
    if journal.named("campaign_finished"):
        return True, "finished"
    drivers = [event for event in journal.events if event["event"] in ("driver_started", "driver_stopped")]
    if drivers and drivers[-1]["event"] == "driver_stopped":
        return False, f"unfinished: the driver stopped ({drivers[-1].get('reason', 'no reason given')})"
    return False, "unfinished: still running, or its driver was killed"


def _compare(final: DataFrame, owners: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Return the tasks where the global model is below every site, those where an owner is below it, and the count."""
    wins, owner_wins, compared = [], [], 0
    for task, losses in final.iterrows() if GLOBAL in final else ():
        sites = losses.drop(GLOBAL).dropna()
        if losses[GLOBAL] == losses[GLOBAL] and len(sites):
            compared += 1
            wins += [str(task)] if losses[GLOBAL] < sites.min() else []
            owned = sites.reindex([site for site in owners[str(task)] if site in sites])
            owner_wins += [str(task)] if len(owned) and owned.min() < losses[GLOBAL] else []
    return tuple(wins), tuple(owner_wins), compared

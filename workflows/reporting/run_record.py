"""Read a run directory for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from workflows.records.batch_jobs import BatchJob, batch_jobs
from workflows.records.event_log import EventLog, TaskRun, period_of, read_events, task_runs
from workflows.records.scores import GLOBAL
from workflows.records.site_jobs import SiteJobs, site_jobs
from workflows.records.timeline import Timeline
from workflows.records.timeline_building import build_timeline
from workflows.reporting.losses import LossTables, read_losses

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run directory.

    Attributes:
        tables: losses of the models.
        notes: about what could not be read.
    """

    directory: Path
    campaign: Mapping[str, Any]
    campaign_text: str
    environment: Mapping[str, Any]
    tables: LossTables
    journal: EventLog
    notes: tuple[str, ...] = ()

    @property
    def losses(self) -> DataFrame:
        """Losses in nats per token: one row per round, columns (model, task)."""
        return self.tables.loss

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
    def mean_errors(self) -> DataFrame:
        """Standard errors of ``mean_losses``; missing where that of a single task is not known."""
        import pandas

        tasks = list(self.owners)
        squares = {model: self.tables.error[model].reindex(columns=tasks) ** 2 for model in self.models}
        errors = {model: table.sum(axis=1, skipna=False) ** 0.5 / len(tasks) for model, table in squares.items()}
        return pandas.DataFrame(errors, index=self.losses.index)

    @cached_property
    def final_losses(self) -> DataFrame:
        """The last loss of each model on each task."""
        import pandas

        last = {model: _last_scored(self.losses[model]) for model in self.models}
        return pandas.DataFrame(last, columns=self.models).reindex(list(self.owners))

    @cached_property
    def final_errors(self) -> DataFrame:
        """The standard errors of ``final_losses``."""
        import pandas

        rows = {model: _last_round(self.losses[model]) for model in self.models}
        last = {model: self.tables.error[model].loc[number] for model, number in rows.items()}
        return pandas.DataFrame(last, columns=self.models).reindex(list(self.owners))

    @cached_property
    def samples(self) -> dict[str, int]:
        """How many samples are behind the last loss of the global model on each task, where this is known."""
        if GLOBAL not in self.models:
            return {}
        counts = self.tables.samples[GLOBAL].loc[_last_round(self.losses[GLOBAL])].dropna()
        return {str(task): int(count) for task, count in counts.items()}

    @cached_property
    def uniform_loss(self) -> float | None:
        """The loss of a model that gives every token the same probability, if recorded."""
        return next((score.uniform_loss for score in self.tables.scores if score.uniform_loss), None)

    @cached_property
    def tasks(self) -> list[TaskRun]:
        """The finished tasks in the order of the journal."""
        return task_runs(self.journal)

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


def _last_round(losses: DataFrame) -> Any:
    """Return the newest round with a loss on some task, or the newest one."""
    scored = losses.dropna(how="all")
    return (scored if len(scored) else losses).index[-1]


def _last_scored(losses: DataFrame) -> Any:
    return losses.loc[_last_round(losses)]


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
    tables = read_losses(directory / "metrics.csv", journal)
    environment = _load_environment(directory)
    return RunRecord(directory, campaign, text, environment, tables, journal, (*journal.notes, *tables.notes))


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

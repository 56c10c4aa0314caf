"""Sums over the batch jobs of each site: queue time, node-seconds, lost jobs, refused submissions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.records.batch_jobs import BatchJob
from workflows.records.event_log import EventLog, TaskRun, first_number, task_runs, trainings
from workflows.records.failed_blocks import REFUSED, STILLBORN, failure_text
from workflows.records.spans import covered_s


@dataclass(frozen=True)
class SiteJobs:
    """Batch jobs of one site and their sums.

    Attributes:
        jobs: all of them, in order.
        queued_s: seconds in which at least one waited.
        held_node_s: seconds they ran, times their nodes.
        trained_node_s: seconds of the finished trainings, times the nodes of the job they ended in.
        continued: number of trainings that were continued in another job.
        refusals: why submissions were refused, in order.
        failures: why jobs died before their worker began, in order; other failures are in the jobs' endings.
    """

    site: str
    jobs: tuple[BatchJob, ...]
    queued_s: float
    held_node_s: float
    trained_node_s: float
    continued: int
    refusals: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def lost(self) -> tuple[BatchJob, ...]:
        return tuple(job for job in self.jobs if job.lost)


def site_jobs(journal: EventLog, jobs: Iterable[BatchJob]) -> list[SiteJobs]:
    """Return the sums of every site that had or requested a batch job, in the order of the journal."""
    by_site: dict[str, list[BatchJob]] = defaultdict(list)
    failures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        by_site[job.site].append(job)
    for event in journal.named("block_failed"):
        failures[str(event.get("site"))].append(event)
    tasks = task_runs(journal)
    return [_sums(site, by_site[site], failures[site], tasks) for site in dict.fromkeys([*by_site, *failures])]


def _sums(
    site: str, jobs: Sequence[BatchJob], failures: Sequence[dict[str, Any]], tasks: Sequence[TaskRun]
) -> SiteJobs:
    here = [task for task in tasks if task.site == site]
    trained = trainings(here)
    return SiteJobs(
        site=site,
        jobs=tuple(jobs),
        queued_s=covered_s([job.queued for job in jobs], max((job.until for job in jobs), default=0.0)),
        held_node_s=sum(job.nodes * job.ran_s for job in jobs),
        trained_node_s=sum((first_number(run.result.get("train_s")) or 0.0) * _nodes(run, jobs) for run in trained),
        continued=sum(_was_continued(run, here, jobs) for run in trained),
        refusals=tuple(str(event["reason"]) for event in failures if event.get("kind") == REFUSED),
        failures=tuple(failure_text(event, with_retry=False) for event in failures if event.get("kind") == STILLBORN),
    )


def _nodes(training: TaskRun, jobs: Sequence[BatchJob]) -> int:
    """Return the nodes of the job in which a training ended."""
    started = [job for job in jobs if job.started is not None and job.started <= training.ended]
    return started[-1].nodes if started else 1


def _was_continued(training: TaskRun, tasks: Sequence[TaskRun], jobs: Sequence[BatchJob]) -> bool:
    """Return whether a training was begun in a job that ended, and finished in a later one."""
    if int(training.result.get("attempts") or 1) < 2:
        return False
    finished = [task for task in tasks if task.app in ("enrol", "local_train") and task.ended <= training.started]
    since = max((task.ended for task in finished), default=0.0)
    ends = [job.started if job.requeued else job.until for job in jobs if job.started is not None]
    return any(since < end <= training.started for end in ends)

"""Batch jobs in the report: a table of the jobs, a table of their sums per site, and the sentences at the top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workflows.console.units import plural, seconds_text
from workflows.records.batch_jobs import GIVEN_BACK, LEFT_BEHIND, QUEUED, RUNNING, UNRECORDED, BatchJob
from workflows.records.site_jobs import SiteJobs
from workflows.reporting.captions import hours_text
from workflows.reporting.loss_captions import NONE
from workflows.reporting.run_record import RunRecord
from workflows.reporting.tables import Table

MIN_WAIT_SHARE, MIN_WAIT_S = 0.1, 60.0  # queue waits shorter than this share of the campaign get no sentence
MOST_NAMED = 3  # sites in a sentence
ENDINGS = {
    "completed": "ended by itself",
    "failed": "failed",
    "timeout": "ran into its walltime",
    "preempted": "preempted",
    "node_fail": "its node failed",
    "out_of_memory": "out of memory",
    "requeued": "requeued by its scheduler",
    "unknown": "unknown to its scheduler",
    GIVEN_BACK: "given back",
    LEFT_BEHIND: "left by a dead driver, cancelled by the next",
    UNRECORDED: "not recorded, its driver had stopped",
    QUEUED: "queued",
    RUNNING: "running",
}
CAUSES = {  # of the loss of a job
    "failed": "failure",
    "timeout": "timeout",
    "preempted": "preemption",
    "node_fail": "node failure",
    "out_of_memory": "lack of memory",
    "requeued": "requeue",
}


def job_table(run: RunRecord) -> Table:
    """Return the table of batch jobs in the order of submission; without rows if there were none."""
    opened = run.journal.events[0]["time"] if run.journal.events else 0.0
    rows = [
        [
            job.site,
            job.job_id,
            job.queue or NONE,
            str(job.nodes),
            NONE if job.walltime_s is None else seconds_text(job.walltime_s),
            seconds_text(max(0.0, job.submitted - opened)),
            _waited_text(job),
            _ran_text(job),
            ending_text(job),
        ]
        for job in run.jobs
    ]
    columns = ("site", "job", "queue", "nodes", "walltime", "submitted after", "waited", "ran", "how it ended")
    return Table("Batch jobs", columns, rows, "≥: the end is unknown, or the job has not ended.", "remarks")


def _waited_text(job: BatchJob) -> str:
    return _at_least(job.waited_s, job.started is None and job.ending in (QUEUED, UNRECORDED))


def _ran_text(job: BatchJob) -> str:
    return NONE if job.started is None else _at_least(job.ran_s, job.ending in (RUNNING, UNRECORDED))


def _at_least(seconds: float, open_end: bool) -> str:
    return ("≥ " if open_end else "") + seconds_text(seconds)


def ending_text(job: BatchJob) -> str:
    """Return how a job ended, with its scheduler's reason."""
    text = _cancelled_text(job) if job.ending == "cancelled" else ENDINGS.get(job.ending, job.ending)
    text = f"requeued by its scheduler, then {text}" if job.requeued else text
    return f"{text} ({job.reason})" if job.reason and job.ending not in (GIVEN_BACK, "unknown") else text


def _cancelled_text(job: BatchJob) -> str:
    if job.started is None:
        return "cancelled while queued"
    left_s = (job.walltime_s or 0.0) - job.ran_s
    return f"cancelled with {seconds_text(left_s)} of its walltime left" if left_s > 0 else "cancelled"


def sum_table(run: RunRecord) -> Table:
    """Return the table of sums, one row per site that had or requested a batch job."""
    rows = [
        [
            site.site,
            str(len(site.jobs)),
            seconds_text(site.queued_s),
            hours_text(site.held_node_s),
            hours_text(site.trained_node_s),
            _share_text(site),
            str(site.continued),
            str(len(site.lost)),
            str(len(site.refusals)),
        ]
        for site in run.site_jobs
    ]
    columns = ("site", "jobs", "queued", "node-hours held", "node-hours training", "share", "trainings in several jobs")
    note = "Held: from start to end, times the nodes. Training: of finished trainings; the rest is loading, waiting "
    note += "for the other sites, and steps that were lost with a job."
    return Table("Batch jobs by site", (*columns, "jobs lost", "refused"), rows, note)


def _share_text(site: SiteJobs) -> str:
    return f"{site.trained_node_s / site.held_node_s:.0%}" if site.held_node_s else NONE


def block_text(run: RunRecord) -> str:
    """Return the sentences about long waits, lost jobs and refused submissions; empty if there were none."""
    sites = run.site_jobs
    found = [queue_sentence(sites, run.timeline.length_s), loss_sentence(sites), refusal_sentence(sites)]
    return " ".join(sentence for sentence in found if sentence)


def queue_sentence(sites: Sequence[SiteJobs], length_s: float) -> str:
    """Return a sentence about the sites that waited long in queues, the longest wait first."""
    long = [site for site in sites if site.queued_s >= max(MIN_WAIT_S, MIN_WAIT_SHARE * length_s)]
    long.sort(key=lambda site: -site.queued_s)
    parts = [f"{site.site} {seconds_text(site.queued_s)}" for site in long[:MOST_NAMED]]
    if not parts:
        return ""
    parts[0] = f"{long[0].site} waited {seconds_text(long[0].queued_s)} of {seconds_text(length_s)} in the queue"
    return _enumerate(parts, len(long) - MOST_NAMED) + "."


def loss_sentence(sites: Sequence[SiteJobs]) -> str:
    """Return a sentence about lost jobs, their causes, and the trainings that were continued in another job."""
    lost = [job for site in sites for job in site.lost]
    continued = sum(site.continued for site in sites)
    if not lost:
        return f"{plural(continued, 'training')} continued in another batch job." if continued else ""
    where = [site.site for site in sites if site.lost]
    causes = Counter(CAUSES["requeued" if job.requeued else job.ending] for job in lost)
    text = f"{plural(len(lost), 'batch job was', 'batch jobs were')} lost at "
    text += _enumerate(where[:MOST_NAMED], len(where) - MOST_NAMED)
    text += f" ({', '.join(f'{count} by {cause}' for cause, count in causes.items())})"
    return text + (f"; {plural(continued, 'training')} continued in another." if continued else ".")


def refusal_sentence(sites: Sequence[SiteJobs]) -> str:
    """Return a sentence per site about refused submissions and failed jobs, with the last reason."""
    sentences = []
    for site in sites:
        if site.refusals:
            times = plural(len(site.refusals), "submission was", "submissions were")
            sentences.append(f"At {site.site} {times} refused{_last(site.refusals)}.")
        if site.failures:
            sentences.append(f"At {site.site} {plural(len(site.failures), 'batch job')} failed{_last(site.failures)}.")
    return " ".join(sentences)


def _last(reasons: Sequence[str]) -> str:
    reason = reasons[-1].rstrip(".")
    return f" ({'the last: ' if len(reasons) > 1 else ''}{reason})" if reason else ""


def _enumerate(names: Sequence[str], others: int) -> str:
    shown = [*names, f"{others} more"] if others > 0 else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

"""What a report says of batch jobs: a table of them, their sums per site, and what a reader should know first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workflows.console.units import plural
from workflows.records.batch_jobs import GIVEN_BACK, LEFT_BEHIND, RUNS, UNTOLD, WAITS, BatchJob, SiteJobs, duration_text
from workflows.reporting.captions import NONE, hours_text
from workflows.reporting.run_summary import RunRecord
from workflows.reporting.tables import Table

MATTERS_SHARE, MATTERS_S = 0.1, 60.0  # a wait in queues is worth a sentence from this share of the campaign on
NAMED = 3  # sites that a sentence names
ENDINGS = {
    "completed": "ended by itself",
    "failed": "failed",
    "timeout": "ran into its walltime",
    "preempted": "preempted",
    "node_fail": "its node failed",
    "out_of_memory": "out of memory",
    "requeued": "requeued by its scheduler",
    "unknown": "unknown, the scheduler forgot it",
    GIVEN_BACK: "given back",
    LEFT_BEHIND: "left by a dead driver, cancelled by the next",
    UNTOLD: "not recorded, its driver was gone",
    WAITS: "waits",
    RUNS: "runs",
}
LOSSES = {
    "failed": "failure",
    "timeout": "timeout",
    "preempted": "preemption",
    "node_fail": "node failure",
    "out_of_memory": "lack of memory",
    "requeued": "requeue",
}


def job_table(run: RunRecord) -> Table:
    """One row per batch job in the order of submission; no rows where there were none."""
    opened = run.journal.events[0]["time"] if run.journal.events else 0.0
    rows = [
        [
            job.site,
            job.job_id,
            job.queue or NONE,
            str(job.nodes),
            NONE if job.walltime_s is None else duration_text(job.walltime_s),
            duration_text(max(0.0, job.submitted - opened)),
            _waited_text(job),
            _ran_text(job),
            ending_text(job),
        ]
        for job in run.jobs
    ]
    columns = ("site", "job", "queue", "nodes", "walltime", "submitted after", "waited", "ran", "how it ended")
    return Table("Batch jobs", columns, rows, "≥: the end is not known, or not there yet.", "remarks")


def _waited_text(job: BatchJob) -> str:
    return _at_least(job.waited_s, job.started is None and job.ending in (WAITS, UNTOLD))


def _ran_text(job: BatchJob) -> str:
    return NONE if job.started is None else _at_least(job.ran_s, job.ending in (RUNS, UNTOLD))


def _at_least(seconds: float, open_end: bool) -> str:
    return ("≥ " if open_end else "") + duration_text(seconds)


def ending_text(job: BatchJob) -> str:
    """How a job ended, in words, with what its scheduler gave as the reason."""
    words = _cancelled_text(job) if job.ending == "cancelled" else ENDINGS.get(job.ending, job.ending)
    words = f"requeued by its scheduler, then {words}" if job.requeued else words
    return f"{words} ({job.reason})" if job.reason and job.ending not in (GIVEN_BACK, "unknown") else words


def _cancelled_text(job: BatchJob) -> str:
    if job.started is None:
        return "cancelled while it waited"
    left_s = (job.walltime_s or 0.0) - job.ran_s
    return f"cancelled with {duration_text(left_s)} of its walltime left" if left_s > 0 else "cancelled"


def sum_table(run: RunRecord) -> Table:
    """One row per site that had or wanted a batch job."""
    rows = [
        [
            site.site,
            str(len(site.jobs)),
            duration_text(site.queued_s),
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
    note = "Held: from start to end, times the nodes. Training: of finished trainings; the rest went into loading, "
    note += "waiting for the other sites, and steps that were lost with a job."
    return Table("Batch jobs by site", (*columns, "jobs lost", "refused"), rows, note)


def _share_text(site: SiteJobs) -> str:
    return f"{site.trained_node_s / site.held_node_s:.0%}" if site.held_node_s else NONE


def block_text(run: RunRecord) -> str:
    """What a reader should know of the batch jobs before anything else; empty where all went well."""
    sites = run.site_jobs
    found = [queue_sentence(sites, run.timeline.length_s), loss_sentence(sites), refusal_sentence(sites)]
    return " ".join(sentence for sentence in found if sentence)


def queue_sentence(sites: Sequence[SiteJobs], length_s: float) -> str:
    """Which sites waited long in queues, the longest first."""
    long = [site for site in sites if site.queued_s >= max(MATTERS_S, MATTERS_SHARE * length_s)]
    long.sort(key=lambda site: -site.queued_s)
    parts = [f"{site.site} {duration_text(site.queued_s)}" for site in long[:NAMED]]
    if not parts:
        return ""
    parts[0] = f"{long[0].site} waited {duration_text(long[0].queued_s)} of {duration_text(length_s)} in the queue"
    return _enumerate(parts, len(long) - NAMED) + "."


def loss_sentence(sites: Sequence[SiteJobs]) -> str:
    """How many jobs were lost and how, and whether training went on."""
    lost = [job for site in sites for job in site.lost]
    continued = sum(site.continued for site in sites)
    if not lost:
        return f"{plural(continued, 'training')} went on in another batch job." if continued else ""
    where = [site.site for site in sites if site.lost]
    ways = Counter(LOSSES["requeued" if job.requeued else job.ending] for job in lost)
    words = f"{plural(len(lost), 'batch job was', 'batch jobs were')} lost at "
    words += _enumerate(where[:NAMED], len(where) - NAMED)
    words += f" ({', '.join(f'{count} by {way}' for way, count in ways.items())})"
    return words + (f"; {plural(continued, 'training')} went on in another." if continued else ".")


def refusal_sentence(sites: Sequence[SiteJobs]) -> str:
    """Where submissions were refused or jobs failed, how often, and the last reason."""
    sentences = []
    for site in sites:
        if site.refusals:
            times = plural(len(site.refusals), "submission was", "submissions were")
            sentences.append(f"At {site.site} {times} refused{_last(site.refusals)}.")
        if site.failures:
            sentences.append(f"At {site.site} {plural(len(site.failures), 'batch job')} failed{_last(site.failures)}.")
    return " ".join(sentences)


def _last(reasons: Sequence[str]) -> str:
    said = reasons[-1].rstrip(".")
    return f" ({'the last: ' if len(reasons) > 1 else ''}{said})" if said else ""


def _enumerate(names: Sequence[str], others: int) -> str:
    shown = [*names, f"{others} more"] if others > 0 else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

"""The batch jobs of a campaign as its journal tells of them: when each waited, ran and ended, and what it cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workflows.records.event_log import EventLog, Span, TaskRun, covered_s, down_spans, task_runs, trainings
from workflows.records.failed_blocks import REFUSED, STILLBORN, failure_text

# how a job ends besides the states of schedulers
GIVEN_BACK, LEFT_BEHIND, UNTOLD, WAITS, RUNS = "given back", "left behind", "untold", "waits", "runs"
LOST = (
    "failed",
    "timeout",
    "preempted",
    "node_fail",
    "out_of_memory",
    "requeued",
)  # ends that nobody here has asked for
BLOCK_EVENTS = ("block_submitted", "block_started", "block_ended", "blocks_cancelled")
Telling = dict[str, tuple[int, dict[str, Any]]]  # event name -> place in the journal, event


@dataclass(frozen=True)
class BatchJob:
    """One batch job; its times are unix seconds, or seconds since the opening of the campaign after ``shifted``.

    Attributes:
        walltime_s: that it asked for; None: not told.
        started: None: it never started, as far as is known.
        until: its end, or the last that was heard of it.
        ending: a state of the scheduler, or one of the words above.
        reason: the scheduler's, may be empty.
        requeued: it had run before ``started``, its scheduler took it back and started it again; when it took it
            back is not told, so that all before ``started`` counts as waiting.
    """

    site: str
    job_id: str
    queue: str
    nodes: int
    walltime_s: float | None
    submitted: float
    started: float | None
    until: float
    ending: str
    reason: str = ""
    requeued: bool = False

    @property
    def queued(self) -> Span:
        return self.submitted, self.until if self.started is None else self.started

    @property
    def ran(self) -> Span | None:
        return None if self.started is None else (self.started, self.until)

    @property
    def waited_s(self) -> float:
        return self.queued[1] - self.queued[0]

    @property
    def ran_s(self) -> float:
        return 0.0 if self.started is None else self.until - self.started

    @property
    def lost(self) -> bool:
        return self.requeued or self.ending in LOST

    def shifted(self, seconds: float) -> BatchJob:
        """The same job on a clock that began ``seconds`` later."""
        started = None if self.started is None else self.started - seconds
        return replace(self, submitted=self.submitted - seconds, started=started, until=self.until - seconds)


def batch_jobs(journal: EventLog, per_round: Collection[str] = ()) -> tuple[BatchJob, ...]:
    """The jobs in the order of their submission.

    Args:
        journal: of the campaign.
        per_round: sites that give their block back after every round, so that a cancelled one is no surprise.
    """
    down = down_spans(journal)
    return tuple(_job(telling, journal, down, per_round) for telling in _tellings(journal))


def _tellings(journal: EventLog) -> list[Telling]:
    """What the journal tells of each job; a job id that comes again means a new job."""
    found: list[Telling] = []
    newest: dict[tuple[Any, str], Telling] = {}
    for place, event in enumerate(journal.events):
        name, site = event["event"], event.get("site")
        if name not in BLOCK_EVENTS:
            continue
        if name == "block_submitted":
            found.append({})
            newest[site, str(event.get("job_id"))] = found[-1]
        for job_id in event.get("job_ids") or [event.get("job_id")]:
            newest.get((site, str(job_id)), {})[name] = place, event
    return found


def _job(telling: Telling, journal: EventLog, down: Sequence[Span], per_round: Collection[str]) -> BatchJob:
    asked = telling["block_submitted"][1]
    begun, ended = (telling.get(name, (0, {}))[1] for name in ("block_started", "block_ended"))
    first, started = (_number(*(event.get("started") for event in pair)) for pair in ((begun, ended), (ended, begun)))
    submitted = float(asked["time"])
    if first is not None:  # the scheduler knows better than the driver, who only looks now and then
        wait_s = _number(begun.get("wait_s"))
        submitted = min(submitted, first) if wait_s is None else first - wait_s
    until, ending = _end(telling, journal, down, per_round, started is not None)
    return BatchJob(
        site=str(asked.get("site")),
        job_id=str(asked.get("job_id")),
        queue=str(asked.get("queue") or ""),
        nodes=int(_number(asked.get("nodes")) or 1),
        walltime_s=_number(asked.get("walltime_s")),
        submitted=submitted,
        started=started,
        until=max(until, started or submitted),
        ending=ending,
        reason=_plain(ended.get("reason")),
        requeued=first != started,
    )


def _number(*values: Any) -> float | None:
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _plain(reason: Any) -> str:
    """A scheduler's reason, less the word that means none."""
    return "" if reason in (None, "None") else str(reason)


def _end(
    telling: Telling, journal: EventLog, down: Sequence[Span], per_round: Collection[str], started: bool
) -> tuple[float, str]:
    """When a job ended or was last heard of, and how."""
    if "block_ended" in telling:
        place, event = telling["block_ended"]
        state, ended = str(event.get("state")), _number(event.get("ended"), event["time"])
        asked_for = event.get("asked")
        if asked_for is None:  # not told: it was, where nothing came after it
            asked_for = event.get("site") in per_round or _is_over(journal, place)
        return ended or 0.0, GIVEN_BACK if state == "cancelled" and asked_for else state
    if "blocks_cancelled" in telling:
        return float(telling["blocks_cancelled"][1]["time"]), LEFT_BEHIND
    submitted = telling["block_submitted"][1]["time"]
    last_word = next((start for start, end in down if end > submitted), None)
    if last_word is not None:
        return last_word, UNTOLD
    drivers = [event["event"] for event in journal.events if event["event"] in ("driver_started", "driver_stopped")]
    over = bool(journal.named("campaign_finished")) or drivers[-1:] == ["driver_stopped"]
    return float(journal.events[-1]["time"]), UNTOLD if over else RUNS if started else WAITS


def _is_over(journal: EventLog, place: int) -> bool:
    """Whether nothing was trained or asked for after this place, before the next driver if there is one."""
    for event in journal.events[place + 1 :]:
        if event["event"] == "driver_started":
            return True
        at_a_site = event["event"] == "task_done" and event.get("app") in ("enrol", "local_train")
        if at_a_site or event["event"] in ("block_submitted", "aggregated", "strategy_event"):
            return False
    return True


@dataclass(frozen=True)
class SiteJobs:
    """What the batch jobs of a site come to.

    Attributes:
        jobs: all of them, in order.
        queued_s: seconds in which at least one waited.
        held_node_s: seconds they ran, times their nodes.
        trained_node_s: seconds of the finished trainings, times the nodes of the job they ended in.
        continued: trainings that went on in another job.
        refusals: why submissions were refused, in order.
        failures: what is told of jobs that died before their worker began, in order; of others their ending tells.
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
    """The sums of every site that had a job or asked for one, in the order of the journal."""
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
        trained_node_s=sum((_number(run.result.get("train_s")) or 0.0) * _nodes(run, jobs) for run in trained),
        continued=sum(_went_on(run, here, jobs) for run in trained),
        refusals=tuple(str(event["reason"]) for event in failures if event.get("kind") == REFUSED),
        failures=tuple(failure_text(event, with_retry=False) for event in failures if event.get("kind") == STILLBORN),
    )


def _nodes(training: TaskRun, jobs: Sequence[BatchJob]) -> int:
    """Nodes of the job in which a training ended."""
    started = [job for job in jobs if job.started is not None and job.started <= training.ended]
    return started[-1].nodes if started else 1


def _went_on(training: TaskRun, tasks: Sequence[TaskRun], jobs: Sequence[BatchJob]) -> bool:
    """Whether a training was begun in a job that ended, and finished in a later one."""
    finished = [task for task in tasks if task.app in ("enrol", "local_train") and task.ended <= training.started]
    since = max((task.ended for task in finished), default=0.0)
    ends = [job.started if job.requeued else job.until for job in jobs if job.started is not None]
    return int(training.result.get("attempts") or 1) > 1 and any(since < end <= training.started for end in ends)


def duration_text(seconds: float) -> str:
    """A stretch of time as people say it: 45 s, 12 min, 3 h 10 min, 2 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    big, small, names = (minutes // 60, minutes % 60, ("h", "min"))
    if minutes < 60:
        return f"{minutes} min"
    if minutes >= 48 * 60:
        hours = round(minutes / 60)
        big, small, names = hours // 24, hours % 24, ("d", "h")
    return f"{big} {names[0]} {small} {names[1]}" if small else f"{big} {names[0]}"

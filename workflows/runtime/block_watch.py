"""Follow the batch jobs of a campaign at their schedulers, for the journal, the queue history and the display.

Parsl's own states decay to COMPLETED and have no times. One watcher per site asks the scheduler itself, in a thread
of its own, so that a scheduler that does not answer delays nothing else. A query that fails leaves the state of a block
as it was: unknown is never taken for ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError
from site_configs.library.schedulers import GONE, LIVE, UNKNOWN, JobFacts, Scheduler, scheduler_for
from site_configs.library.site import Block, Site
from site_configs.library.status_provider import SETTLE_S, StatusAwareProvider
from workflows.console.units import seconds_text
from workflows.records.journal import Journal
from workflows.records.queue_history import BlockRecord, append, machine_of
from workflows.runtime.block_workers import UNMANAGED_S, BlockWorkers
from workflows.runtime.executors import job_prefix
from workflows.runtime.leftovers import leftover_problem
from workflows.runtime.queued import queued_text, wait_hint
from workflows.runtime.site_executor import SiteExecutor

if TYPE_CHECKING:
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory

logger = logging.getLogger(__name__)
END_STATES_S = 15.0  # that the end of a campaign waits for the end states of its blocks
CLOSING_PERIOD_S = 0.5


@dataclass
class WatchedJob:
    """A batch job of this campaign; ``facts`` is the last state that the scheduler has reported."""

    job_id: str
    submitted: float
    facts: JobFacts | None = None
    start_recorded: bool = False
    hint: str = ""  # why it waits, as it was recorded
    ended: bool = False
    hung: str = ""  # why it was cancelled here though its scheduler says that it runs


@dataclass
class BlockWatch:
    """Watcher of the blocks of one site.

    Args:
        site: with a ``block``.
        machine: name for the history.
        executor: Parsl's executor of the site.
        campaign: name for the history.
        prefix: of the names of all jobs of this run.
    """

    site: Site
    machine: str
    executor: Any
    journal: Journal
    campaign: str
    prefix: str
    period_s: float
    jobs: dict[str, WatchedJob] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    looking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        assert self.site.block is not None
        self.block: Block = self.site.block
        provider = getattr(self.executor, "provider", None)
        shared = provider.scheduler if isinstance(provider, StatusAwareProvider) else None
        self.scheduler: Scheduler = shared or self._own_scheduler()
        shortest_s = max(2.0 * self.site.heartbeat_s, 3 * self.period_s)
        self.workers = BlockWorkers(min(UNMANAGED_S, shortest_s))
        self.thread = threading.Thread(target=self._follow, name=f"blocks-{self.site.name}", daemon=True)

    def _own_scheduler(self) -> Scheduler:
        return scheduler_for(self.block.scheduler, self.block.command_environment)

    def start(self) -> None:
        self.thread.start()

    def _follow(self) -> None:
        while not self.closing.wait(self.period_s):
            try:
                self.look()
            except CrossfedError:  # the journal cannot be written: the driver meets the same disk and stops
                logger.exception("the blocks of %s are not watched any more", self.site.name)
                return
            except Exception:  # the edge of a thread: an unforeseen answer, the next may be readable
                logger.exception("the state of the blocks of %s could not be read", self.site.name)

    def look(self) -> None:
        """Ask the scheduler once and record what is new."""
        with self.looking:
            self._let_go()
            self._note_submissions()
            open_jobs = [job.job_id for job in self.jobs.values() if not job.ended]
            for job_id, answer in self.scheduler.jobs(open_jobs).items() if open_jobs else ():
                self._note(self.jobs[job_id], answer)

    def _let_go(self) -> None:
        """End the hold on a site whose scheduler could not be asked, once it answers and nothing is left there."""
        if not isinstance(self.executor, SiteExecutor) or not self.executor.held or self.closing.is_set():
            return
        if leftover_problem(self.site, self.prefix, self.journal) is None:
            self.executor.held = ""
            self.journal.write("site_back", site=self.site.name)

    def _note_submissions(self) -> None:
        for block, job_id in list(self.executor.blocks_to_job_id.items()):
            if job_id not in self.jobs:
                self.jobs[job_id] = WatchedJob(job_id, time.time())
                self.journal.write(
                    "block_submitted",
                    site=self.site.name,
                    block=block,
                    job_id=job_id,
                    queue=self.block.queue.name,
                    nodes=self.block.nodes,
                    walltime_s=self.block.walltime_s,
                )

    def _note(self, job: WatchedJob, answer: Any) -> None:
        too_soon = job.facts is None and time.time() - job.submitted < SETTLE_S
        if answer is UNKNOWN or (answer is GONE and too_soon):
            return
        if answer is GONE:
            self._ended(job, "unknown", "the scheduler no longer knows the job")
            return
        job.facts = answer
        self._explain(job, wait_hint(answer) if answer.state == "pending" else "")
        if answer.started and not job.start_recorded:
            job.start_recorded = True
            self.journal.write(
                "block_started",
                site=self.site.name,
                job_id=job.job_id,
                started=answer.started,
                wait_s=max(0.0, answer.started - (answer.submitted or job.submitted)),
            )
        if answer.state not in LIVE:
            state, reason = ("node_fail", job.hung) if job.hung else (answer.state, answer.reason)
            self._ended(job, state, reason)
        elif answer.state == "running" and isinstance(self.executor, SiteExecutor):
            self._check_workers(job, self.executor)

    def _check_workers(self, job: WatchedJob, executor: SiteExecutor) -> None:
        """Replace a block whose workers have fallen silent, and report one whose workers do not come."""
        slow = self.workers.slow_start(executor, job.job_id)
        if slow:
            self.journal.write("start_slow", site=self.site.name, reason=slow)
        silent_s = self.workers.silent_s(executor, job.job_id)
        if silent_s is None:
            return
        if not job.hung:
            job.hung = f"its workers have not answered for {seconds_text(silent_s + 2 * self.site.heartbeat_s)}"
            reason = f"block {job.job_id} runs, but {job.hung}: it is cancelled, its work continues in the next block"
            self.journal.write("block_replaced", site=self.site.name, reason=reason)
        if executor.provider is not None:
            executor.provider.cancel([job.job_id])  # Parsl then asks for another

    def _explain(self, job: WatchedJob, hint: str) -> None:
        """Record why a job waits, once for each reason that is not an ordinary wait behind others."""
        if hint and hint != job.hint:
            self.journal.write("block_waits", site=self.site.name, job_id=job.job_id, reason=hint)
        job.hint = hint or job.hint

    def _ended(self, job: WatchedJob, state: str, reason: str) -> None:
        job.ended = True
        facts = job.facts
        self.journal.write(
            "block_ended",
            site=self.site.name,
            job_id=job.job_id,
            state=state,
            reason=reason,
            asked=self._asked_for(job),
            busy=isinstance(self.executor, SiteExecutor) and self.executor.outstanding() > 0,
            started=facts.started if facts else None,
            ended=facts.ended if facts else time.time(),
        )
        append(self._record(job, state))

    def _asked_for(self, job: WatchedJob) -> bool | None:
        """Return True if this driver has asked for the end of a job; None if its provider does not record that."""
        if self.closing.is_set():
            return True
        provider = getattr(self.executor, "provider", None)
        return job.job_id in provider.cancel_requested if isinstance(provider, StatusAwareProvider) else None

    def _record(self, job: WatchedJob, state: str) -> BlockRecord:
        facts = job.facts
        return BlockRecord(
            machine=self.machine,
            site=self.site.name,
            campaign=self.campaign,
            scheduler=self.block.scheduler,
            queue=self.block.queue.name,
            job_id=job.job_id,
            nodes=self.block.nodes,
            walltime_s=self.block.walltime_s,
            submitted=(facts and facts.submitted) or job.submitted,
            started=facts.started if facts else None,
            ended=facts.ended if facts else None,
            state=state,
        )

    def state(self) -> str:
        """Return the state of the newest block as text for the user."""
        live = [job for job in list(self.jobs.values()) if not job.ended]
        if not live:
            held = self.executor.held if isinstance(self.executor, SiteExecutor) else ""
            return held or getattr(self.executor.provider, "holding", "") or "requesting a block"
        job = live[-1]
        facts = job.facts
        if facts is None or facts.state == "pending":
            return queued_text(job.job_id, facts, time.time() - ((facts and facts.submitted) or job.submitted))
        return f"block {job.job_id} runs"

    def running(self) -> bool:
        """Return True if the newest block has started, as far as is known."""
        live = [job for job in list(self.jobs.values()) if not job.ended]
        return bool(live) and live[-1].facts is not None and live[-1].facts.state == "running"

    def close(self) -> None:
        """Record the end states of the blocks, which Parsl has cancelled before, and cancel any job that is left."""
        self.closing.set()
        self.thread.join(END_STATES_S)
        self.scheduler = self._own_scheduler()  # an answer that was kept may be older than the end of a job
        until = time.monotonic() + END_STATES_S
        while (left := self._cancel_rest()) and time.monotonic() < until:
            time.sleep(CLOSING_PERIOD_S)
        if left:
            logger.warning("site %s: jobs may still be there: %s", self.site.name, left)

    def _cancel_rest(self) -> str:
        """Cancel the jobs that are left.

        Returns:
            Text on what may still be in the queue; empty if nothing is and the end of every job is known.
        """
        left = self.scheduler.find(self.prefix)
        if left:
            self.scheduler.cancel([job.job_id for job in left])
        try:
            self.look()
        except CrossfedError:  # an unwritable journal is no reason to leave jobs in the queue
            logger.exception("the end of the blocks of %s is not in the journal", self.site.name)
            without_end = []
        else:
            without_end = [job.job_id for job in self.jobs.values() if not job.ended]
        if left is None:
            return "the scheduler does not answer"
        return ", ".join([job.job_id for job in left] or without_end)


def watch_blocks(plan: Plan, executors: Mapping[str, Any], run: RunDirectory) -> dict[str, BlockWatch]:
    """Start a watcher for each batch site."""
    watches = {
        name: BlockWatch(
            site,
            machine_of(name, plan.campaign.config_of(name)),
            executors[name],
            run.journal,
            plan.campaign.name,
            job_prefix(run.opened["token"]),
            executors[name].status_polling_interval,
        )
        for name, site in plan.machines.items()
        if site.own_block and name in executors
    }
    for watch in watches.values():
        watch.start()
    return watches

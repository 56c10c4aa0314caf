"""Lifecycle of Parsl for one run: start, health checks, clean shutdown."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import parsl
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.dataflow.errors import PropagatedException
from parsl.dataflow.futures import AppFuture
from parsl.executors.errors import BadStateException
from parsl.executors.status_handling import BlockProviderExecutor

from apps.base.files import remove_unfinished
from apps.base.identity import Place
from apps.training.progress import Progress
from apps.trust.keys import public_key
from workflows.globus.route import GlobusRoute, globus_route
from workflows.planning.plan import Plan
from workflows.planning.storage import unseen_stores
from workflows.records.driver_key import driver_key
from workflows.records.failed_blocks import BlockFailure
from workflows.records.run_directory import RunDirectory
from workflows.runtime.block_failures import BlockFailureHandler
from workflows.runtime.block_watch import watch_blocks
from workflows.runtime.executors import job_prefix, make_config, make_executor
from workflows.runtime.leftovers import leftover_problems
from workflows.runtime.limits import provide_files
from workflows.runtime.local_workers import LocalExecutor
from workflows.runtime.memoizer import JournalMemoizer
from workflows.runtime.moved_site_jobs import settle_moved_sites
from workflows.runtime.orphans import TOKEN_VARIABLE, end_orphans
from workflows.runtime.progress_files import ProgressFiles
from workflows.runtime.retry_policy import RetryPolicy, newest_checkpoint
from workflows.runtime.site_executor import OtherVersions, SiteExecutor, task_error
from workflows.trust.edge import UNSIGNED, Edge
from workflows.trust.orders import Orders
from workflows.trust.site_keys import SiteKeys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

logger = logging.getLogger(__name__)
CLEANUP_S = 60.0  # to cancel all blocks
DEATH_S = 2.0  # from the end of an interchange to its replacement
IDLE_S = 5.0  # after so long without a task a block that serves one round only is given back


class Kernel:
    """Submits apps to the executors of a run and checks the health of these."""

    def __init__(
        self,
        kernel: DataFlowKernel,
        run: RunDirectory,
        plan: Plan,
        route: GlobusRoute,
        patience: BlockFailureHandler,
        edge: Edge = UNSIGNED,
    ) -> None:
        self.kernel, self.run, self.plan, self.globus, self.patience = kernel, run, plan, route, patience
        self.edge = edge
        self.watches = watch_blocks(plan, kernel.executors, run)
        self.busy_until = dict.fromkeys(self.watches, time.monotonic())
        self.ailing: dict[str, float] = {}  # executors that seem dead -> monotonic time since when
        self.files = ProgressFiles({name: site.storage_root for name, site in plan.sites.items()})
        for label, executor in kernel.executors.items():
            self._record_start(label, executor)

    def _record_start(self, label: str, executor: Any) -> None:
        process = getattr(executor, "interchange_proc", None)
        if process is not None:
            self.run.journal.write("executor_started", site=label, interchange_pid=process.pid)
        if isinstance(executor, LocalExecutor):
            self.run.journal.write("executor_started", site=label, fork_server_pid=executor.server.pid)

    def hold(self, problems: Mapping[str, str]) -> None:
        """Submit no block at these sites until what an earlier driver has left there is settled; the others begin."""
        for site, problem in problems.items():
            executor: Any = self.kernel.executors[site]
            executor.held = f"waits: {problem}"
            reason = f"{problem}; no job is submitted there until an earlier driver's jobs are cancelled, others go on"
            self.run.journal.write("site_held", site=site, reason=reason)

    def submit(
        self, function: Callable[..., Any], place: Place, *args: Any, on: str, remember: bool = True
    ) -> AppFuture:
        """Submit one app call to an executor; its result is recorded in the journal.

        Args:
            function: one of ``apps``; takes ``place`` first.
            place: the site and the round the call belongs to.
            args: plain values, and futures of them.
            on: label of the executor.
            remember: False for an answer that is valid for the moment only.
        """
        return self.app(function, on, remember)(place, *args)

    def app(
        self, function: Callable[..., Any], on: str, remember: bool = True, unnamed: Sequence[str] = ()
    ) -> Callable[..., AppFuture]:
        """Return a function as a Parsl app that is bound to one executor.

        Args:
            function: as for ``submit``; so are the next two.
            on: label of the executor.
            remember: False for an answer that is valid for the moment only.
            unnamed: keyword arguments that are no part of a task's identity.
        """
        app: Callable[..., AppFuture] = parsl.python_app(
            function, data_flow_kernel=self.kernel, executors=[on], cache=remember, ignore_for_cache=list(unnamed)
        )
        return app

    def progress(self, site: str) -> Progress | None:
        """Return the progress of a site's task, or None where it cannot be read."""
        remote = self.globus.sites.get(site)
        if remote:
            return remote.last_look.get("progress")
        return self.files.read(site)

    def seen_at(self, site: str) -> float | None:
        """Return the UNIX time, on this host's clock, at which a site's progress was new; None if it is not known."""
        if site in self.globus.sites:
            return self.globus.seen_at(site)
        return self.files.seen_at(site)

    def block_end(self, label: str, block: str) -> str | None:
        """Return how a block has ended; None while it runs, and where its blocks are not this driver's.

        Args:
            label: of its executor.
            block: Parsl's number of it, as its workers report it; empty where they have none.
        """
        executor = self.kernel.executors[label]
        if not isinstance(executor, BlockProviderExecutor):
            return None
        status = executor.status_facade.get(block)
        return status.state.name.lower().replace("_", " ") if status is not None and status.terminal else None

    def give_back(self, label: str) -> bool:
        """End the block of a site if it has nothing to do; a worker on this machine stays for the next request.

        Returns:
            False if the site has work, or if its blocks are not this driver's.
        """
        executor = self.kernel.executors[label]
        if not isinstance(executor, BlockProviderExecutor | LocalExecutor) or executor.outstanding():
            return False
        if isinstance(executor, BlockProviderExecutor):
            executor.scale_in_facade(1)
        return True

    def check_health(self) -> None:
        """Replace executors that have died, each alone, and end blocks for one round that have nothing to do."""
        for label, executor in list(self.kernel.executors.items()):
            if isinstance(executor, SiteExecutor):
                self._replace_dead(label, executor)
        for label, watch in self.watches.items():
            if watch.block.reuse == "per_round":
                self._give_back_idle(label)

    def _replace_dead(self, label: str, executor: SiteExecutor) -> None:
        """Start another executor for a site whose own can never answer again; its open tasks are tried again there."""
        reason = executor.ailment()
        if reason is None:
            self.ailing.pop(label, None)
            return
        since = self.ailing.setdefault(label, time.monotonic())
        if not isinstance(reason, OtherVersions) and time.monotonic() - since < DEATH_S:
            return  # why it has ended may still be on its way
        self.ailing.pop(label)
        self.run.journal.write("executor_replaced", site=label, reason=f"{reason.what}; another is started")
        successor = make_executor(self.plan.machines[label], self.run.path, self.patience)
        successor.edge = self.edge
        successor.take_over(executor)
        self.kernel.job_status_poller._executors.remove(executor)
        self.kernel.add_executors([successor])
        self.watches[label].executor = successor
        self._record_start(label, successor)
        executor.retire(reason)

    def _give_back_idle(self, label: str) -> None:
        """End the block of a site that has had nothing to do for some seconds."""
        executor: Any = self.kernel.executors[label]
        now = time.monotonic()
        if executor.outstanding():
            self.busy_until[label] = now
        elif now - self.busy_until[label] > IDLE_S and any(not job.terminal for job in executor.status_facade.values()):
            self.busy_until[label] = now  # a scheduler that refuses is not asked at every tick
            executor.scale_in_facade(1)

    def dead_executors(self) -> list[str]:
        """Return the executors that can never answer.

        One that was given up after its blocks failed reads no results either, but its tasks have the reason.
        """
        return [
            label
            for label, executor in self.kernel.executors.items()
            if isinstance(executor, SiteExecutor) and not executor.bad_state_is_set and executor.ailment()
        ]

    def close(self) -> None:
        """End Parsl in order if possible: it would wait for ever for an interchange that is dead."""
        left = self.globus.open_tasks()
        self.globus.close()
        ending = threading.Thread(target=self.kernel.cleanup, name="parsl-cleanup", daemon=True)
        dead = self.dead_executors()
        if not dead:
            ending.start()
            ending.join(CLEANUP_S)
        if dead or ending.is_alive():
            logger.warning("Parsl could not be ended in order; its processes are ended by their token")
        for watch in self.watches.values():
            watch.close()
        for site, count in left.items():  # last: the disk may be full
            self.run.journal.write("tasks_left", site=site, tasks=count)


@contextmanager
def parsl_for(plan: Plan, run: RunDirectory) -> Iterator[Kernel]:
    """Run Parsl with all executors of a plan; processes and jobs that an earlier driver has left are ended first."""
    provide_files(plan)
    token = run.opened["token"]
    resumed = any(run.journal.events("driver_started"))
    ended = end_orphans(token)
    held: dict[str, str] = {}
    if resumed:
        held = leftover_problems([s for s in plan.machines.values() if s.own_block], job_prefix(token), run.journal)
        settle_moved_sites(plan, run)
    remove_unfinished(run.path)
    os.environ[TOKEN_VARIABLE] = token
    key = driver_key()
    process = {"pid": os.getpid(), "host": os.uname().nodename, "key": public_key(key)}
    run.journal.write("driver_started", **process, resumed=resumed, ended=ended)
    kernel: Kernel | None = None
    try:
        route = globus_route(plan, run)
        patience = BlockFailureHandler(partial(_record_failure, run))
        edge = _edge(plan, run, key)
        config = _config(plan, run, route, patience)
        for executor in config.executors:
            cast(Any, executor).edge = edge
        kernel = Kernel(parsl.load(config), run, plan, route, patience, edge)
        kernel.hold(held)
        yield kernel
    finally:
        try:
            if kernel is not None:
                kernel.close()
        finally:
            parsl.clear()
            end_orphans(token)


def _edge(plan: Plan, run: RunDirectory, key: Ed25519PrivateKey) -> Edge:
    """Return how this driver signs its requests and checks the answers."""
    campaign = run.opened["token"]
    fixed = {name: entry.public_key for name, entry in plan.campaign.sites.items() if entry.public_key}
    return Edge(Orders(run.journal, campaign, run.path.name, key), SiteKeys(run.journal, campaign, fixed, run.path))


def is_batch(plan: Plan, label: str) -> bool:
    """Return True if an executor's blocks are batch jobs."""
    return label in plan.machines and plan.machines[label].own_block is not None


def _record_failure(run: RunDirectory, site: str, failure: BlockFailure) -> None:
    run.journal.write("block_failed", site=site, **asdict(failure))


def _config(plan: Plan, run: RunDirectory, route: GlobusRoute, patience: BlockFailureHandler) -> Config:
    def give_back(label: str) -> None:
        """End a block whose time is up: it takes no more tasks and would still be paid for."""
        if is_batch(plan, label):
            executor: Any = parsl.dfk().executors[label]
            executor.scale_in_facade(1)

    def record_loss(site: str, reason: str, event: str = "block_replaced") -> None:
        run.journal.write(event, site=site, reason=reason)

    newest: dict[str, Callable[[], str | None]] = {
        name: partial(newest_checkpoint, site.storage_root) for name, site in plan.sites.items()
    }
    newest |= {name: executor.newest_checkpoint for name, executor in route.sites.items()}
    memoizer = JournalMemoizer(run.journal, unseen_stores(plan.sites))
    retry = RetryPolicy(newest, give_back)
    return make_config(plan, run.path, memoizer, retry, patience, record_loss, route.executors())


def root_cause(future: Future[Any]) -> BaseException | None:
    """Return the error at the start of a chain of failed tasks, or None; for a given-up executor, its reason."""
    error = future.exception()
    while isinstance(error, PropagatedException):
        error = error.dependent_exceptions_tids[0][0]
    if isinstance(error, BadStateException):
        return task_error(error, error.executor.label)
    return error

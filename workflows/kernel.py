"""Parsl for one run: started in order, looked after, and gone without a trace at the end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import parsl
from parsl.dataflow.dflow import DataFlowKernel
from parsl.dataflow.errors import PropagatedException
from parsl.dataflow.futures import AppFuture

from apps.errors import CrossfedError
from apps.files import remove_unfinished
from apps.manifests import Place
from workflows.executors import make_config
from workflows.local_blocks import LocalBlocks
from workflows.memo import JournalMemoizer
from workflows.orphans import TOKEN_VARIABLE, end_orphans
from workflows.preflight import Plan
from workflows.rundir import RunDirectory

logger = logging.getLogger(__name__)
CLEANUP_S = 60.0  # to cancel all blocks


class Kernel:
    """Submits apps to the executors of a run and watches over these."""

    def __init__(self, kernel: DataFlowKernel, run: RunDirectory) -> None:
        self.kernel, self.run = kernel, run
        self.local_blocks = LocalBlocks({label: e for label, e in kernel.executors.items() if hasattr(e, "provider")})
        started = {label: getattr(executor, "interchange_proc", None) for label, executor in kernel.executors.items()}
        self.interchanges = {label: process for label, process in started.items() if process is not None}
        for label, process in self.interchanges.items():
            run.journal.write("executor_started", site=label, interchange_pid=process.pid)

    def submit(self, function: Callable[..., Any], place: Place, *args: Any, on: str) -> AppFuture:
        """One app call on an executor; its result is remembered in the journal.

        Args:
            function: one of ``apps``; takes ``place`` first.
            place: the site and the round the call belongs to.
            args: plain values, and futures of them.
            on: label of the executor.
        """
        app = parsl.python_app(function, data_flow_kernel=self.kernel, executors=[on], cache=True)
        return app(place, *args)

    def check_health(self) -> None:
        """Replace broken blocks.

        Raises:
            CrossfedError: an interchange has ended; Parsl cannot go on without it, a new driver can.
        """
        for label in self.local_blocks.check():
            self.run.journal.write("block_replaced", site=label, reason="its worker pool was broken")
        dead = self.dead_executors()
        if dead:
            raise CrossfedError("Parsl's interchange or its results have ended", site=dead[0])

    def dead_executors(self) -> list[str]:
        """Executors that will never answer again: without their interchange, or without who reads its results."""
        executors: dict[str, Any] = self.kernel.executors
        return [
            label
            for label, process in self.interchanges.items()
            if process.poll() is not None or not executors[label]._result_queue_thread.is_alive()
        ]

    def close(self) -> None:
        """End Parsl in order where that can be. It would wait for ever for an interchange that is dead."""
        ending = threading.Thread(target=self.kernel.cleanup, name="parsl-cleanup", daemon=True)
        dead = self.dead_executors()
        if not dead:
            ending.start()
            ending.join(CLEANUP_S)
        if dead or ending.is_alive():
            logger.warning("Parsl could not be ended in order; its processes are ended by their token")


@contextmanager
def parsl_for(plan: Plan, run: RunDirectory) -> Iterator[Kernel]:
    """A running Parsl with all executors of a plan; what an earlier driver has left is ended first."""
    token = run.opened["token"]
    resumed = any(run.journal.events("driver_started"))
    ended = end_orphans(token)
    remove_unfinished(run.path)
    os.environ[TOKEN_VARIABLE] = token
    run.journal.write("driver_started", pid=os.getpid(), host=os.uname().nodename, resumed=resumed, ended=ended)
    kernel: Kernel | None = None
    try:
        kernel = Kernel(parsl.load(make_config(plan, run.path, JournalMemoizer(run.journal))), run)
        yield kernel
    finally:
        try:
            if kernel is not None:
                kernel.close()
        finally:
            parsl.clear()
            end_orphans(token)


def root_cause(future: Future[Any]) -> BaseException | None:
    """The error at the start of a chain of failed tasks, or None."""
    error = future.exception()
    while isinstance(error, PropagatedException):
        error = error.dependent_exceptions_tids[0][0]
    return error

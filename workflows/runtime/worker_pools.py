"""Watches the blocks that are processes on this machine.

Parsl's worker pool restarts a worker that dies. When its helper process dies, it goes on telling that it is well and
never runs a task again: the campaign would wait for ever. Such a block is ended here; Parsl then starts another and
repeats the task that was lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import psutil

logger = logging.getLogger(__name__)
PERIOD_S = 3.0
PATIENCE_S = 12.0  # the pool itself needs up to 5 s to replace a worker
HEALTHY_CHILDREN = 2  # a pool's helper and its worker


class WorkerPools:
    """Looks after the local blocks of some executors; ``check`` may be called as often as one likes."""

    def __init__(self, executors: Mapping[str, Any]) -> None:
        self.executors = executors
        self.checked = 0.0
        self.healthy: set[int] = set()  # pools that have once had all their processes
        self.ill_since: dict[int, float] = {}

    def check(self) -> list[str]:
        """End broken blocks; the labels of their executors."""
        if time.monotonic() - self.checked < PERIOD_S:
            return []
        self.checked = time.monotonic()
        return [label for label, executor in self.executors.items() if self._end_broken(label, executor)]

    def _end_broken(self, label: str, executor: Any) -> bool:
        broken = [job for job, facts in executor.provider.resources.items() if self._is_broken(facts["remote_pid"])]
        if broken:
            logger.warning("a worker pool of %s is broken and is replaced", label)
            executor.provider.cancel(broken)
        return bool(broken)

    def _is_broken(self, job_pid: int) -> bool:
        pool = find_pool(job_pid)
        if pool is None:
            return False  # not started yet, or ended: Parsl sees that by itself
        if spawned_children(pool) >= HEALTHY_CHILDREN:
            self.healthy.add(pool.pid)
            self.ill_since.pop(pool.pid, None)
            return False
        ill_since = self.ill_since.setdefault(pool.pid, time.monotonic())
        return pool.pid in self.healthy and time.monotonic() - ill_since > PATIENCE_S


def find_pool(job_pid: int) -> psutil.Process | None:
    """The worker pool among the processes of a local block."""
    try:
        for process in psutil.Process(job_pid).children(recursive=True):
            started_as = process.cmdline()[:3]
            if "bash" not in process.name() and any("process_worker_pool" in part for part in started_as):
                return process
    except psutil.Error:
        return None
    return None


def spawned_children(pool: psutil.Process) -> int:
    """Living processes that the pool has spawned, without Python's resource tracker."""
    try:
        return sum(1 for child in pool.children() if _alive(child) and "resource_tracker" not in str(child.cmdline()))
    except psutil.NoSuchProcess:
        return 0


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

"""Compare what a scheduler says of a block with what its workers say: a job may run on a node that hangs.

Slurm and PBS call a block running whose every process stands still (a hung file system or accelerator), and Parsl
counts it as a place for work. The interchange drops its worker pool after the heartbeats that it misses, and a pool
that was dropped never comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflows.console.units import seconds_text
from workflows.runtime.output import last_line
from workflows.runtime.site_executor import SiteExecutor

UNMANAGED_S = 180.0  # after the interchange has dropped the workers of a block
SLOW_START_S = 600.0


@dataclass
class Sight:
    """What is known of the workers of one running block; monotonic seconds."""

    running_since: float
    seen: float | None = None  # connected, the last time
    told: bool = False


@dataclass
class BlockWorkers:
    """The workers of a site's blocks.

    Args:
        unmanaged_s: seconds that a block may run without its workers, once they had connected.
        slow_start_s: seconds after which a block is reported whose workers have not connected yet.
        clock: monotonic seconds.
    """

    unmanaged_s: float = UNMANAGED_S
    slow_start_s: float = SLOW_START_S
    clock: Callable[[], float] = time.monotonic
    sights: dict[str, Sight] = field(default_factory=dict)  # by job

    def silent_s(self, executor: SiteExecutor, job_id: str) -> float | None:
        """Return for how long a running block has been without its workers; None if that is no reason to end it."""
        sight, block = self._look(executor, job_id)
        if sight.seen is None or executor.silent_since is not None or block not in executor.registered:
            return None
        silent_s = self.clock() - sight.seen
        return silent_s if silent_s > self.unmanaged_s else None

    def slow_start(self, executor: SiteExecutor, job_id: str) -> str | None:
        """Return a sentence, once, about a running block whose workers do not connect; else None."""
        sight, block = self._look(executor, job_id)
        since = self.clock() - sight.running_since
        if sight.told or block in executor.registered or executor.silent_since or since <= self.slow_start_s:
            return None
        sight.told = True
        provider: Any = executor.provider
        said = last_output(provider.resources.get(job_id, {}))
        return f"block {job_id} has run for {seconds_text(since)} and its worker has not connected; last output: {said}"

    def _look(self, executor: SiteExecutor, job_id: str) -> tuple[Sight, str | None]:
        """Return what is known of a running block, brought up to date, and Parsl's number of it."""
        now, block = self.clock(), executor.job_ids_to_block.get(job_id)
        sight = self.sights.setdefault(job_id, Sight(now))
        if any(manager["block_id"] == block for manager in executor.managers):
            sight.seen = now
        elif sight.seen is None and block in executor.registered:
            sight.seen = now  # it connected and was dropped between two looks
        return sight, block


def last_output(job: Mapping[str, Any]) -> str:
    """Return the last line that a job has written, of its errors first."""
    said = [last_line(Path(str(job.get(name)))) for name in ("job_stderr_path", "job_stdout_path")]
    return next((line for line in said if line != "no output"), "none yet")

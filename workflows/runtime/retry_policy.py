"""Decide which failed tasks Parsl tries again, and at what cost.

A task whose worker or block was lost is tried again at a cost: the campaign's ``retries`` limit how often. If the task
has saved progress before its block ended, that costs nothing, however many blocks it needs. What our own code refuses
would be refused again and is not tried.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apps.base.errors import BlockTooShort, LeaseHeld, RanksLost, Unfinished, WorkersLost
from apps.base.files import newest_file
from apps.training.checkpoints import FOLDER

logger = logging.getLogger(__name__)


def losses() -> tuple[type[Exception], ...]:
    """Return the classes of errors that mean that workers were lost, not that work was refused."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return ManagerLost, WorkerLost, RanksLost, WorkersLost


class RetryPolicy:
    """Parsl's ``retry_handler`` for a run.

    Args:
        newest: by the name of a site, a function that returns the newest checkpoint of its tasks.
        give_back: ends the block of a site whose time is up, so that the next try gets another.
    """

    def __init__(self, newest: Mapping[str, Callable[[], str | None]], give_back: Callable[[str], None]) -> None:
        self.newest, self.give_back = newest, give_back
        self.saved: dict[str, str] = {}  # site -> its newest checkpoint at the last loss

    def __call__(self, error: Exception, task: Any) -> float:
        """Return the cost of a failure, out of the campaign's ``retries``."""
        site = task["executor"]
        if isinstance(error, Unfinished | BlockTooShort):
            logger.info("%s", error)
            self.give_back(site)
            return 0 if isinstance(error, Unfinished) else 1
        if isinstance(error, LeaseHeld):
            return 0
        if isinstance(error, losses()):
            cost = 0 if self._has_progressed(site) else 1
            logger.warning("%s at %s lost its worker, trying again at cost %d", task["func_name"], site, cost)
            return cost
        return math.inf

    def _has_progressed(self, site: str) -> bool:
        """Return True if a site's task has saved a checkpoint since its worker was lost the last time."""
        newest = self.newest[site]() if site in self.newest else None
        before = self.saved.get(site)
        if newest is not None:
            self.saved[site] = newest
        return newest is not None and newest != before


def newest_checkpoint(root: Path) -> str | None:
    """Return the path of the last checkpoint of a site's tasks; it contains the task and the step."""
    try:
        path = newest_file(root / FOLDER, "*/step-*.safetensors")
    except OSError:  # the storage does not answer: nothing is known
        return None
    return str(path) if path else None

"""Which failed tasks Parsl tries again, and at what cost.

A lost worker or block is worth another try, at a cost: the campaign's ``retries`` bound how often. A task that got
on before its block ended costs nothing, however many blocks it needs. What our own code refuses would be refused
again, and is not tried.
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
    """The errors that tell of workers that are gone, not of work that they refuse."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return ManagerLost, WorkerLost, RanksLost, WorkersLost


class RetryPolicy:
    """Parsl's ``retry_handler`` for a run.

    Args:
        newest: tells the newest checkpoint of a site's tasks, by the site's name.
        give_back: ends the block of a site whose time is up, so that the next try gets another.
    """

    def __init__(self, newest: Mapping[str, Callable[[], str | None]], give_back: Callable[[str], None]) -> None:
        self.newest, self.give_back = newest, give_back
        self.saved: dict[str, str] = {}  # site -> its newest checkpoint at the last loss

    def __call__(self, error: Exception, task: Any) -> float:
        """The cost of this failure, out of the campaign's ``retries``."""
        site = task["executor"]
        if isinstance(error, Unfinished | BlockTooShort):
            logger.info("%s", error)
            self.give_back(site)
            return 0 if isinstance(error, Unfinished) else 1
        if isinstance(error, LeaseHeld):
            return 0
        if isinstance(error, losses()):
            cost = 0 if self._got_on(site) else 1
            logger.warning("%s at %s lost its worker, trying again at cost %d", task["func_name"], site, cost)
            return cost
        return math.inf

    def _got_on(self, site: str) -> bool:
        """Whether a site's task has saved anything since its worker was lost before."""
        newest = self.newest[site]() if site in self.newest else None
        before = self.saved.get(site)
        if newest is not None:
            self.saved[site] = newest
        return newest is not None and newest != before


def newest_checkpoint(root: Path) -> str | None:
    """Return the path of the last checkpoint of a site's tasks; it contains the task and the step."""
    path = newest_file(root / FOLDER, "*/step-*.safetensors")
    return str(path) if path else None

"""Parsl's executor for batch sites, whose worker takes tasks in the order of ``task_order``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parsl.executors import HighThroughputExecutor

from workflows.runtime.task_order import task_order


class BlockExecutor(HighThroughputExecutor):
    """HighThroughputExecutor in which an evaluation at a site does not hold up the site's next training."""

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Submit a call; see ``HighThroughputExecutor.submit``."""
        ordered = {**resource_specification, "priority": task_order(func)}
        return super().submit(func, ordered, *args, **kwargs)

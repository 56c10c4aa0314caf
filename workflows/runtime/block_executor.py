"""Parsl's executor for batch sites: calls and answers are text, and tasks are taken in the order of ``task_order``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parsl.executors import HighThroughputExecutor

from apps.remote.calls import answer_text
from workflows.runtime.task_order import task_order
from workflows.trust.calls import answered, call_of
from workflows.trust.edge import UNSIGNED, Edge


class BlockExecutor(HighThroughputExecutor):
    """HighThroughputExecutor whose workers execute calls that are text, and answer with text.

    An evaluation at a site does not hold up the site's next training.
    """

    edge: Edge = UNSIGNED

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Submit a call; see ``HighThroughputExecutor.submit``.

        Raises:
            TaskError: the arguments are not plain values.
        """
        call = call_of(self.label, func, args, kwargs)
        ordered = {**resource_specification, "priority": task_order(func)}
        answer = super().submit(answer_text, ordered, self.edge.text(call))
        return answered(answer, lambda text: self.edge.read(text, call))

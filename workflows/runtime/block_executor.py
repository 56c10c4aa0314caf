"""Parsl's executor for batch sites: calls and answers are text, and tasks are taken in the order of ``task_order``.

Parsl sends both as pickles. Those of the workers are read without executing anything in them: see ``worker_messages``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parsl.executors import HighThroughputExecutor
from typing_extensions import override

from apps.remote.calls import answer_text
from workflows.runtime.task_order import task_order
from workflows.runtime.worker_messages import PlainResults
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

    @override
    def _result_queue_worker(self) -> None:
        plain: Any = PlainResults(self.incoming_q, self.tasks)
        self.incoming_q = plain
        super()._result_queue_worker()

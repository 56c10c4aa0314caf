"""The edge of a driver: its requests to sites leave as text with a signed order, answers are checked, then believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.trust.answers import checked_result, read_answer
from workflows.trust.calls import SiteCall
from workflows.trust.orders import Orders
from workflows.trust.site_keys import SiteKeys

if TYPE_CHECKING:
    from apps.trust.signed import Signed


@dataclass(frozen=True)
class Edge:
    """How the executors of a driver write requests and read answers.

    Attributes:
        orders: signs requests; None: they are not signed.
        keys: checks the signatures of answers; None: they are not checked.
    """

    orders: Orders | None = None
    keys: SiteKeys | None = None

    def order(self, function: str, args: Any, kwargs: Mapping[str, Any] | None = None) -> Signed | None:
        """Return the signed order of a request; None: requests of this function are not signed.

        Args:
            function: as ``module:function``.
            args: plain values, as they are sent.
            kwargs: the same by name.
        """
        return self.orders.sign({"function": function, "args": args, "kwargs": kwargs or {}}) if self.orders else None

    def text(self, call: SiteCall) -> str:
        """Return a request as text with its order.

        Raises:
            TaskError: the arguments are not plain values.
        """
        call.text()  # whatever is not plain is told before it is signed
        order = self.order(call.function, call.args, call.kwargs)
        return call.text(order, self.orders.name if self.orders else "")

    def read(self, text: object, call: SiteCall) -> Any:
        """Return the result in the text of an answer; see ``read_answer``."""
        return self._believed(read_answer(text, call), call)

    def checked(self, result: Any, call: SiteCall) -> Any:
        """Return a result that was read already; see ``checked_result``."""
        return self._believed(checked_result(result, call), call)

    def _believed(self, result: Any, call: SiteCall) -> Any:
        if self.keys:
            self.keys.check(call, result)
        return result


UNSIGNED = Edge()

"""Calls of a Globus service that are made again until they are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.globus.transfer.errors import TransferDetached, TransferFailed, as_refusal, is_transient, wait_asked_s

if TYPE_CHECKING:
    from globus_sdk import TransferClient


@dataclass(frozen=True)
class Backoff:
    """How often is looked, and how long is waited.

    Attributes:
        poll_s, slowest_poll_s: between two looks at a transfer; the longer it runs, the longer.
        back_off_s, longest_back_off_s: before something that failed is tried again; doubles.
        stall_s: a transfer with faults that has not moved anything for so long is cancelled, to be begun anew.
        overdue_s: so long after its deadline a transfer that the service has not ended is cancelled.
    """

    poll_s: float = 1.0
    slowest_poll_s: float = 20.0
    back_off_s: float = 2.0
    longest_back_off_s: float = 120.0
    stall_s: float = 4 * 3600.0
    overdue_s: float = 900.0

    def back_off(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.back_off_s * 2 ** min(failures - 1, 30), self.longest_back_off_s)


class RetryingClient:
    """Makes the calls of one client, one at a time: a client may not be used by two threads at once.

    Args:
        make_client: an authorised client of Globus Transfer; called when the first call is due.
        patience: for the back-off.
        stop: set when the driver leaves.
        on_trouble: told of an error that may pass, and None once a call has succeeded.
    """

    def __init__(
        self,
        make_client: Callable[[], TransferClient],
        patience: Backoff,
        stop: threading.Event,
        on_trouble: Callable[[str | None], None],
    ) -> None:
        self.make_client, self.patience, self.stop, self.on_trouble = make_client, patience, stop, on_trouble
        self._lock = threading.Lock()
        self._client: TransferClient | None = None

    def __call__(self, call: Callable[[TransferClient], Any]) -> Any:
        """The result of a call, however long the service does not answer.

        Raises:
            TransferRefused: the service's answer is final.
            TransferLeft: ``stop`` was set before there was an answer.
        """
        from globus_sdk import GlobusError

        failures = 0
        while not self.stop.is_set():
            try:
                result = self._once(call)
            except GlobusError as error:
                if not is_transient(error):
                    raise _final(error) from None
                failures += 1
                self.on_trouble(error_text(error))
                self.stop.wait(max(self.patience.back_off(failures), wait_asked_s(error)))
            else:
                self.on_trouble(None)
                return result
        raise driver_stopped()

    def _once(self, call: Callable[[TransferClient], Any]) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.make_client()
            # the one repetition is for a token that has run out; longer waiting is done where it can be ended
            with self._client.retry_config.tune(max_retries=1, max_sleep=min(1, self.patience.back_off_s)):
                return call(self._client)


def error_text(error: Exception) -> str:
    """An error that may pass, in a line for people."""
    from globus_sdk import GlobusTimeoutError, NetworkError

    if isinstance(error, GlobusTimeoutError):
        return "no answer in time"
    if isinstance(error, NetworkError):
        return "no connection"
    return f"{type(error).__name__}: {error}"[:REASON_LENGTH]


def _final(error: Exception) -> CrossfedError:
    from globus_sdk import GlobusAPIError

    if isinstance(error, GlobusAPIError):
        return as_refusal(error)
    return TransferFailed(f"Globus cannot be asked: {type(error).__name__}: {error}"[:REASON_LENGTH])


def driver_stopped() -> TransferDetached:
    """The error for those who wait when the driver stops."""
    return TransferDetached("the driver stopped; what Globus carries goes on", remedy="A resume follows the transfer")

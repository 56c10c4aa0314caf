"""Calls of a Globus service that are repeated until they are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.globus.transfer.errors import (
    TransferDetached,
    TransferFailed,
    is_transient,
    refusal,
    retry_after_s,
)

if TYPE_CHECKING:
    from globus_sdk import TransferClient

HTTP_TIMEOUT_S = 20.0  # short, because a transfer has a submission id before it is submitted: it may be submitted again


@dataclass(frozen=True)
class Backoff:
    """Intervals between status requests and between retries.

    Attributes:
        poll_s, slowest_poll_s: between two status requests for a transfer; grows with its age.
        back_off_s, longest_back_off_s: before a failed call is repeated; doubles each time.
        stall_s: a transfer with faults that has moved nothing for so long is cancelled, to be started again.
        postpone_s: one that has stalled for so long gives its slot to another that waits for one.
        overdue_s: so long after its deadline a transfer that the service has not ended is cancelled.
    """

    poll_s: float = 1.0
    slowest_poll_s: float = 20.0
    back_off_s: float = 2.0
    longest_back_off_s: float = 120.0
    stall_s: float = 4 * 3600.0
    postpone_s: float = 15.0
    overdue_s: float = 900.0

    def back_off(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.back_off_s * 2 ** min(failures - 1, 30), self.longest_back_off_s)

    def until_postponed(self, stalled: int) -> float:
        """Return how long a transfer may stall while another waits that has itself given back a slot so many times."""
        return min(self.postpone_s * 2 ** min(stalled, 30), max(self.postpone_s, self.stall_s / 4))


class RetryingClient:
    """Client that makes one call at a time and repeats it: a client must not be used by two threads at once.

    Args:
        make_client: returns an authorised client of Globus Transfer; called at the first call.
        backoff: intervals between repetitions.
        stop: set when the driver stops.
        on_trouble: called with the text of an error that may pass, and with None once a call has succeeded.
    """

    def __init__(
        self,
        make_client: Callable[[], TransferClient],
        backoff: Backoff,
        stop: threading.Event,
        on_trouble: Callable[[str | None], None],
    ) -> None:
        self.make_client, self.backoff, self.stop, self.on_trouble = make_client, backoff, stop, on_trouble
        self._lock = threading.Lock()
        self._client: TransferClient | None = None

    def __call__(self, call: Callable[[TransferClient], Any]) -> Any:
        """Return the result of a call, however long the service does not answer.

        Raises:
            TransferRefused: the service's answer is final.
            TransferDetached: ``stop`` was set before there was an answer.
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
                self.stop.wait(max(self.backoff.back_off(failures), retry_after_s(error)))
            else:
                self.on_trouble(None)
                return result
        raise driver_stopped()

    def _once(self, call: Callable[[TransferClient], Any]) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.make_client()
            # the one repetition is for an expired token; longer waits happen where ``stop`` can end them
            with self._client.retry_config.tune(max_retries=1, max_sleep=min(1, self.backoff.back_off_s)):
                return call(self._client)


@contextmanager
def stop_after(limit_s: float) -> Iterator[threading.Event]:
    """Yield an event that is set after so many seconds."""
    stop = threading.Event()
    timer = threading.Timer(limit_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


def error_text(error: Exception) -> str:
    """Return an error that may pass as one line."""
    from globus_sdk import GlobusTimeoutError, NetworkError

    if isinstance(error, GlobusTimeoutError):
        return "no answer in time"
    if isinstance(error, NetworkError):
        return "no connection"
    return f"{type(error).__name__}: {error}"[:REASON_LENGTH]


def _final(error: Exception) -> CrossfedError:
    from globus_sdk import GlobusAPIError

    if isinstance(error, GlobusAPIError):
        return refusal(error)
    return TransferFailed(f"the call to Globus failed: {type(error).__name__}: {error}"[:REASON_LENGTH])


def driver_stopped() -> TransferDetached:
    """Return the error for callers that wait when the driver stops."""
    return TransferDetached("the driver stopped; the transfer continues", remedy="A resume follows the transfer")

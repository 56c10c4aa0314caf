"""Places for the transfers that are submitted at a time; one that stalls gives its place to one that waits."""

from __future__ import annotations

import itertools
import threading
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workflows.globus.transfer.calls import driver_stopped
from workflows.globus.transfer.task import STOP_POLL_S


class Slot:
    """A slot that is held."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.promised = False

    def gives_way(self, may_wait_no_longer: Callable[[int], bool]) -> bool:
        """Return True if the holder shall give its slot back for another that waits; it must then do so.

        Args:
            may_wait_no_longer: takes how often the one that waits has stalled, and decides.
        """
        self.promised = self.promised or self._slots.promise(may_wait_no_longer)
        return self.promised


class Slots:
    """A number of slots, taken in order: first those that never stalled, then those that stalled once, and so on.

    Args:
        count: number of slots.
        stop: set when the driver stops.
    """

    def __init__(self, count: int, stop: threading.Event) -> None:
        self.stop = stop
        self._free, self._promised = count, 0  # slots; those that are about to be given back
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []  # how often each has stalled, and its number
        self._numbers = itertools.count()

    @contextmanager
    def hold(self, stalled: int = 0) -> Iterator[Slot]:
        """Hold a slot.

        Args:
            stalled: how often this transfer has given back a slot.

        Raises:
            TransferDetached: the driver stops before a slot is free.
        """
        self._take((stalled, next(self._numbers)))
        slot = Slot(self)
        try:
            yield slot
        finally:
            with self._changed:
                self._free += 1
                self._promised -= slot.promised
                self._changed.notify_all()

    def _take(self, ticket: tuple[int, int]) -> None:
        with self._changed:
            insort(self._waiting, ticket)
            try:
                while self._free == 0 or self._waiting[0] != ticket:
                    if self.stop.is_set():
                        raise driver_stopped()
                    self._changed.wait(STOP_POLL_S)
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def promise(self, may_wait_no_longer: Callable[[int], bool]) -> bool:
        """Return True if one that waits shall get the slot of the caller, and count on it; see ``Slot.gives_way``."""
        with self._changed:
            served = self._free + self._promised  # as many of those that wait get a slot anyway
            if len(self._waiting) <= served or not may_wait_no_longer(self._waiting[served][0]):
                return False
            self._promised += 1
            return True

"""Tests of one query for several askers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from patience import patience

from site_configs.library.schedulers import UNKNOWN, Answer
from site_configs.library.schedulers.shared import SharedScheduler


@dataclass
class Slow:
    """A scheduler that takes its time, does not know and counts."""

    takes_s: float = 0.0
    asked: list[list[str]] = field(default_factory=list)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        self.asked.append(list(ids))
        time.sleep(self.takes_s)
        return dict.fromkeys(ids, UNKNOWN)

    def cancel(self, ids: Sequence[str]) -> list[str]:
        return []


def shared(scheduler: Any, clock: list[float]) -> SharedScheduler:
    return SharedScheduler(scheduler, 30, lambda: clock[0])


def test_an_answer_serves_for_a_while() -> None:
    slow, clock = Slow(), [100.0]
    both = shared(slow, clock)
    assert both.jobs(["1"]) == both.jobs(["1"]) == {"1": UNKNOWN} and slow.asked == [["1"]]
    assert both.jobs(["1", "2"]) == {"1": UNKNOWN, "2": UNKNOWN} and slow.asked[1:] == [["2"]]
    clock[0] += 31
    both.jobs(["1", "2"])
    assert slow.asked[2:] == [["1", "2"]] and both.jobs([]) == {}


def test_a_cancelled_job_is_asked_for_again() -> None:
    slow, clock = Slow(), [100.0]
    both = shared(slow, clock)
    both.jobs(["1", "2"])
    assert both.cancel(["1"]) == []
    both.jobs(["1", "2"])
    assert slow.asked == [["1", "2"], ["1"]]


def test_a_scheduler_that_hangs_is_asked_by_one_thread_alone() -> None:
    slow, clock = Slow(takes_s=0.3), [100.0]
    both = shared(slow, clock)
    threads = [threading.Thread(target=both.jobs, args=(["1"],)) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow.asked == [["1"]] and time.monotonic() - began < patience(1)

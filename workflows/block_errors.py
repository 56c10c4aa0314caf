"""Blocks that fail: wait longer each time, tell the user at once, give a site up only after many in a row.

Parsl's own handlers end an executor for good after one refused submission, and without one it submits again every
second. While a site is held back here its provider admits no block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apps.errors import CrossfedError

logger = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
MOST_FAILURES = 10  # in a row: with these waits somewhat over an hour
Tell = Callable[[str, str], None]  # site, reason


class BlocksFailed(CrossfedError):  # noqa: N818
    """A site's blocks fail one after the other."""


@dataclass
class Tries:
    """What a site's blocks have come to."""

    seen: set[str] = field(default_factory=set)
    failures: int = 0
    held_until: float = 0.0


class BlockPatience:
    """Parsl's ``block_error_handler`` for the batch sites of a run."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell, self.clock = tell, clock
        self.tries: dict[str, Tries] = {}

    def __call__(self, executor: Any, status: Mapping[str, Any]) -> None:
        tries = self.tries.setdefault(executor.label, Tries())
        for block_id in sorted(status, key=int):
            if status[block_id].terminal and block_id not in tries.seen:
                tries.seen.add(block_id)
                self._ended(executor, tries, status[block_id])
        executor.provider.max_blocks = 0 if self.clock() < tries.held_until else 1

    def _ended(self, executor: Any, tries: Tries, job: Any) -> None:
        if job.status_name not in ("FAILED", "MISSING"):
            tries.failures = 0
            return
        tries.failures += 1
        reason = what_happened(job)
        if tries.failures >= MOST_FAILURES:
            executor.set_bad_state_and_fail_all(
                BlocksFailed(f"{tries.failures} blocks in a row have failed, the last: {reason}", site=executor.label)
            )
            return
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries.failures - 1))
        tries.held_until = self.clock() + wait_s
        self.tell(executor.label, f"{reason}; the next is asked for in {wait_s:.0f} s")


def what_happened(job: Any) -> str:
    """A block's failure in a line: what the scheduler said, or the last words of the job."""
    said = (job.message or job.stderr_summary or "").strip().splitlines()
    words = next((line.strip() for line in reversed(said) if line.strip()), "")
    begun = "a block could not be submitted" if job.status_name == "FAILED" else "a block ended before its worker began"
    return f"{begun}: {words}" if words else begun

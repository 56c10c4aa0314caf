"""Blocks that fail: wait longer each time, tell the user at once, give a site up only after many in a row.

Parsl's own handlers end an executor for good after one refused submission, and without one it submits again every
second. While a site is held back here its provider admits no block.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apps.base.errors import REASON_LENGTH, CrossfedError

logger = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
# how the reasons of a failed block begin
REFUSED, STILLBORN = "a block could not be submitted", "a block ended before its worker began"
LOST = "a block has failed"
MOST_FAILURES = 10  # in a row: with these waits somewhat over an hour
Tell = Callable[[str, str], None]  # site, reason


class BlocksFailed(CrossfedError):  # noqa: N818
    """A site's blocks fail one after the other."""


@dataclass
class BlockHistory:
    """What a site's blocks have come to."""

    seen: set[str] = field(default_factory=set)
    failures: int = 0
    held_until: float = 0.0


class BlockPatience:
    """Parsl's ``block_error_handler`` for the batch sites of a run."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell, self.clock = tell, clock
        self.tries: dict[str, BlockHistory] = {}

    def __call__(self, executor: Any, status: Mapping[str, Any]) -> None:
        tries = self.tries.setdefault(executor.label, BlockHistory())
        for block_id in sorted(status, key=int):
            if status[block_id].terminal and block_id not in tries.seen and not executor.bad_state_is_set:
                tries.seen.add(block_id)
                self._ended(executor, tries, status[block_id], submitted=block_id in executor.blocks_to_job_id)
        executor.provider.max_blocks = 0 if self.clock() < tries.held_until else 1

    def _ended(self, executor: Any, tries: BlockHistory, job: Any, submitted: bool) -> None:
        if job.status_name not in ("FAILED", "MISSING"):
            tries.failures = 0
            return
        tries.failures += 1
        reason = what_happened(job, submitted)
        if tries.failures >= MOST_FAILURES:
            executor.set_bad_state_and_fail_all(
                BlocksFailed(f"{tries.failures} blocks in a row have failed, the last: {reason}", site=executor.label)
            )
            return
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries.failures - 1))
        tries.held_until = self.clock() + wait_s
        self.tell(executor.label, f"{reason}; the next is asked for in {wait_s:.0f} s")


def what_happened(job: Any, submitted: bool) -> str:
    """A block's failure in a line: what the scheduler said, and the last words of the job.

    Args:
        job: Parsl's status of the block.
        submitted: whether there has been a job; Parsl calls a refused submission FAILED at first and MISSING later.
    """
    said = " ".join(re.sub(r"^Failed to start block \d+: ", "", job.message or "").split())
    words = [text for text in (said[:REASON_LENGTH], _last_words(job)) if text]
    after = LOST if job.status_name == "FAILED" else STILLBORN
    begun = after if submitted else REFUSED
    return ": ".join([begun, "; ".join(words)]) if words else begun


def _last_words(job: Any) -> str:
    """The last line that a job has written to its stderr."""
    try:
        lines = (job.stderr_summary or "").split("\n")
    except (OSError, ValueError):  # it cannot be read, or is no text
        return ""
    return next((line.strip()[:REASON_LENGTH] for line in reversed(lines) if line.strip()), "")

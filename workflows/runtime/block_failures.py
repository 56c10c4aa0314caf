"""Handle failed blocks: wait longer after each failure, report it at once, give a site up after many in a row.

Parsl's own handlers end an executor for good after one refused submission, and without a handler Parsl submits again
every second. While a site waits here, its provider is allowed no block.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.records.failed_blocks import FAILED, REFUSED, STILLBORN, BlockFailure, failure_text

FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
MOST_FAILURES = 10  # in a row: with these waits somewhat over an hour
OnFailure = Callable[[str, BlockFailure], None]  # the site's name first


class BlocksFailed(CrossfedError):  # noqa: N818 - a condition of a site, not an error of the program
    """Too many blocks of a site have failed in a row."""


@dataclass
class BlockHistory:
    """Failures of a site's blocks so far."""

    seen: set[str] = field(default_factory=set)
    failures: int = 0  # in a row
    held_until: float = 0.0


class BlockFailureHandler:
    """Parsl's ``block_error_handler`` for the batch sites of a run.

    Args:
        on_failure: called with each failure after which the site tries again.
        clock: monotonic seconds.
    """

    def __init__(self, on_failure: OnFailure, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_failure, self.clock = on_failure, clock
        self.histories: dict[str, BlockHistory] = {}

    def __call__(self, executor: Any, status: Mapping[str, Any]) -> None:
        history = self.histories.setdefault(executor.label, BlockHistory())
        for block_id in sorted(status, key=int):
            if status[block_id].terminal and block_id not in history.seen and not executor.bad_state_is_set:
                history.seen.add(block_id)
                self._ended(executor, history, status[block_id], submitted=block_id in executor.blocks_to_job_id)
        executor.provider.max_blocks = 0 if self.clock() < history.held_until else 1

    def _ended(self, executor: Any, history: BlockHistory, job: Any, submitted: bool) -> None:
        if job.status_name not in ("FAILED", "MISSING"):
            history.failures = 0
            return
        history.failures += 1
        if history.failures >= MOST_FAILURES:
            last = failure_text(asdict(block_failure(job, submitted)))
            executor.set_bad_state_and_fail_all(
                BlocksFailed(f"{history.failures} blocks in a row have failed, the last: {last}", site=executor.label)
            )
            return
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (history.failures - 1))
        history.held_until = self.clock() + wait_s
        self.on_failure(executor.label, block_failure(job, submitted, wait_s))


def block_failure(job: Any, submitted: bool, retry_s: float | None = None) -> BlockFailure:
    """Return what the scheduler and the job itself say about a failed block.

    Args:
        job: Parsl's status of the block.
        submitted: whether there has been a job; Parsl calls a refused submission FAILED at first and MISSING later.
        retry_s: seconds until the next submission.
    """
    message = " ".join(re.sub(r"^Failed to start block \d+: ", "", job.message or "").split())
    reason = "; ".join(text for text in (message[:REASON_LENGTH], _last_line(job)) if text)
    ended = FAILED if job.status_name == "FAILED" else STILLBORN
    return BlockFailure(ended if submitted else REFUSED, reason, retry_s)


def _last_line(job: Any) -> str:
    """Return the last line that a job has written to its stderr."""
    try:
        lines = (job.stderr_summary or "").split("\n")
    except (OSError, ValueError):  # it cannot be read, or is no text
        return ""
    return next((line.strip()[:REASON_LENGTH] for line in reversed(lines) if line.strip()), "")

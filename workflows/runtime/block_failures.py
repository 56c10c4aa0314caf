"""Handle failed blocks by their class: wait and try again, wait without an end, or give the site up at once.

Parsl's own handlers end an executor for good after one refused submission, and without a handler Parsl submits again
every second. While a site waits here, its provider is allowed no block.

A limit on the number of jobs, a maintenance or a silent scheduler passes: the site waits for it however long. A wrong
queue or account does not, nor does an allocation that is used up. What a job itself does before its worker begins is
the same in the next job: after the second time with the same last output the site is given up, because each try may
queue for hours.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from apps.base.errors import REASON_LENGTH, CrossfedError, UserMistake
from site_configs.library.schedulers.refusals import ALLOCATION, PASSING, REQUEST, Refusal, classify
from workflows.planning.labels import key_of
from workflows.records.failed_blocks import FAILED, REFUSED, STILLBORN, BlockFailure, failure_text

FIRST_WAIT_S, LONGEST_WAIT_S = 10.0, 600.0
REPEAT_S = 3600.0  # a wait that goes on for the same reason is reported so often
MOST_FAILURES = 10  # in a row: with these waits somewhat over half an hour
SAME_FAILURES = 2  # in a row, before a worker begins and with the same last output
OnFailure = Callable[[str, BlockFailure], None]  # the site's name first


class BlocksFailed(CrossfedError):  # noqa: N818 - a condition of a site, not an error of the program
    """The blocks of a site fail, and another one would fail as well."""


class RequestRefused(BlocksFailed, UserMistake):
    """The scheduler refuses a site's request as it is: a queue, an account or an option is wrong."""


@dataclass
class BlockHistory:
    """Failures of a site's blocks so far."""

    seen: set[str] = field(default_factory=set)
    waits: int = 0  # in a row
    failures: int = 0  # in a row, without those that pass
    held_until: float = 0.0
    holding: str = ""  # for the user, while the site waits
    last_output: str = ""
    same_output: int = 0
    reported: tuple[str, float] = "", 0.0  # reason, time


class BlockFailureHandler:
    """Parsl's ``block_error_handler`` for the batch sites of a run.

    Args:
        on_failure: called with each failure after which the site tries again; while a site waits for the same reason,
            once an hour.
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
        waits = self.clock() < history.held_until
        executor.provider.max_blocks = 0 if waits else 1
        executor.provider.holding = history.holding if waits else ""

    def _ended(self, executor: Any, history: BlockHistory, job: Any, submitted: bool) -> None:
        if job.status_name not in ("FAILED", "MISSING"):
            history.waits = history.failures = history.same_output = 0
            history.reported = "", 0.0
            return
        failure = block_failure(job, submitted)
        refusal = classify(job.message or failure.reason) if failure.kind == REFUSED else Refusal("", "")
        failure = replace(failure, meaning=refusal.meaning)
        history.waits += 1
        history.failures += refusal.cause not in PASSING
        _count_same(history, failure, job)
        if hopeless := hopeless_reason(executor.label, history, failure, refusal):
            executor.set_bad_state_and_fail_all(hopeless)
            return
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (history.waits - 1))
        history.held_until = self.clock() + wait_s
        history.holding = f"waits to ask for a block again: {failure.meaning or failure_text(asdict(failure))}"
        if refusal.cause not in PASSING or self._is_news(history, failure.reason):
            self.on_failure(executor.label, replace(failure, retry_s=wait_s))

    def _is_news(self, history: BlockHistory, reason: str) -> bool:
        """Return True for a reason that was not reported in the last hour."""
        before, when = history.reported
        if reason == before and self.clock() - when < REPEAT_S:
            return False
        history.reported = reason, self.clock()
        return True


def _count_same(history: BlockHistory, failure: BlockFailure, job: Any) -> None:
    """Count the blocks in a row that have ended before their worker began with the same last output."""
    says = _without_numbers(failure.reason)
    own_doing = failure.kind == STILLBORN and (says.startswith("failed") or bool(_last_line(job)))
    if not own_doing or says.startswith("node_fail"):
        history.last_output, history.same_output = "", 0
    elif says == history.last_output:
        history.same_output += 1
    else:
        history.last_output, history.same_output = says, 1


def _without_numbers(text: str) -> str:
    """Return a text without what differs between two jobs: ids, hosts, times."""
    return re.sub(r"[0-9]+", "0", text)


def hopeless_reason(site: str, history: BlockHistory, failure: BlockFailure, refusal: Refusal) -> BlocksFailed | None:
    """Return why another block of a site would not help, or None."""
    last = failure_text(asdict(failure))
    if refusal.cause == REQUEST:
        remedy = f"Correct {key_of(site)}: queue, account, nodes, walltime or options"
        return RequestRefused(last, site=site, remedy=remedy)
    if refusal.cause == ALLOCATION:
        remedy = f"Ask the facility for more hours, or set {key_of(site)}.account to another project"
        return BlocksFailed(last, site=site, remedy=remedy)
    if history.same_output >= SAME_FAILURES:
        remedy = f"See {key_of(site)}.setup and python_env, and --check --live"
        return BlocksFailed(
            f"{SAME_FAILURES} blocks in a row have ended before their worker began, with the same last output:"
            f" {failure.reason}",
            site=site,
            remedy=remedy,
        )
    if history.failures >= MOST_FAILURES:
        return BlocksFailed(f"{history.failures} blocks in a row have failed, the last: {last}", site=site)
    return None


def block_failure(job: Any, submitted: bool) -> BlockFailure:
    """Return what the scheduler and the job itself say about a failed block.

    Args:
        job: Parsl's status of the block.
        submitted: whether there has been a job; Parsl calls a refused submission FAILED at first and MISSING later.
    """
    message = " ".join(re.sub(r"^Failed to start block \d+: ", "", job.message or "").split())
    reason = "; ".join(text for text in (message[:REASON_LENGTH], _last_line(job)) if text)
    ended = FAILED if job.status_name == "FAILED" else STILLBORN
    return BlockFailure(ended if submitted else REFUSED, reason)


def _last_line(job: Any) -> str:
    """Return the last line that a job has written to its stderr."""
    try:
        lines = (job.stderr_summary or "").split("\n")
    except (OSError, ValueError):  # it cannot be read, or is no text
        return ""
    return next((line.strip()[:REASON_LENGTH] for line in reversed(lines) if line.strip()), "")

"""Enrolment of the sites before the first round.

A wrong path, other code or a full disk at a site is reported before anything trains, and ends the campaign. A site
whose workers or blocks are lost is treated as in later rounds: the others begin if they are enough for the strategy,
and each training request enrols it again. A site whose first job still waits in the queue when others have started is
not waited for, because their blocks would idle: it enrols when its job starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from parsl.dataflow.futures import AppFuture

from apps.base.errors import CrossfedError, main_line
from workflows.dataflow.block_events import facts_of
from workflows.records.journal import Journal
from workflows.runtime.block_failures import BlocksFailed
from workflows.runtime.kernel import root_cause
from workflows.runtime.retry_policy import losses
from workflows.strategies.base import SiteFacts
from workflows.strategies.fedavg import SynchronousSection

if TYPE_CHECKING:
    from workflows.planning.plan import Plan

GATHER_S = 120.0  # a block that has nothing to do yet is paid for
logger = logging.getLogger(__name__)


def enrolled(
    plan: Plan, shards: Mapping[str, AppFuture], until: Callable[[Callable[[], bool]], None], journal: Journal
) -> tuple[SiteFacts, ...]:
    """Return the facts of all sites; a lost or queued site has 0 samples so far.

    Args:
        plan: the checked campaign.
        shards: futures of the enrolments, in the order of the campaign.
        until: returns when a condition holds.
        journal: receives a record of each lost site.

    Raises:
        CrossfedError: a site's mistake; or the first loss, where too few sites are left.
    """
    gather(shards.values(), until)
    answered = {site: shard for site, shard in shards.items() if shard.done()}
    for mistake in filter(None, map(_mistake, answered.values())):
        raise mistake
    answers = {site: root_cause(shard) for site, shard in answered.items()}
    lost = {site: error for site, error in answers.items() if error is not None}
    left, needed = len(shards) - len(lost), _needed(plan)
    for site, error in lost.items():
        if left < needed:
            raise CrossfedError(
                f"{_message(error)}; {left} of {len(shards)} sites are available and {needed} are needed",
                site=site,
                remedy="Resume when it is available again",
            ) from error
        reason = f"site {site}: {_message(error)}; the others begin without it, and it is asked again"
        journal.write("task_failed", app="enrol", site=site, round=0, reason=reason)
        logger.warning("%s", reason)
    for site in shards.keys() - answers.keys():
        logger.info("site %s has not started yet; the others begin", site)
    samples = {site: shards[site].result()["samples"] for site in answers.keys() - lost.keys()}
    return tuple(facts_of(plan.sites[site], samples.get(site, 0)) for site in shards)


def gather(shards: Collection[AppFuture], until: Callable[[Callable[[], bool]], None]) -> None:
    """Wait for the first site, then up to ``GATHER_S`` for the others; return at once at a mistake."""

    def settled() -> bool:
        return all(shard.done() for shard in shards) or any(_mistake(shard) for shard in shards)

    until(lambda: settled() or any(shard.done() and root_cause(shard) is None for shard in shards))
    closes = time.monotonic() + GATHER_S
    until(lambda: settled() or time.monotonic() > closes)


def _mistake(shard: AppFuture) -> BaseException | None:
    """Return the error of a site that asking again would not change, or None."""
    error = root_cause(shard) if shard.done() else None
    return None if isinstance(error, (*losses(), BlocksFailed)) else error


def _needed(plan: Plan) -> int:
    """Return how many sites the strategy needs to begin; one without rounds begins with any."""
    section = plan.campaign.strategy
    return (section.quorum or len(plan.sites)) if isinstance(section, SynchronousSection) else 1


def _message(error: BaseException) -> str:
    """Return an error as one line, without its site and round."""
    return error.what if isinstance(error, CrossfedError) else f"{type(error).__name__}: {main_line(error)}"

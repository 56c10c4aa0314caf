"""What the sites have, before the first round: a mistake ends the campaign at once, a lost site only where it must.

A wrong path, other code or a full disk is told before anything trains. A site whose workers or blocks are lost is
treated as in later rounds: the others begin if they are enough for the strategy, and with each order it is asked again
for what it has. A site whose first job is still in the queue when others are there is not waited for: their blocks
would idle meanwhile. What it has, or a mistake there, is told when its job starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from parsl.dataflow.futures import AppFuture

from apps.base.errors import REASON_LENGTH, CrossfedError
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
    """What a strategy may know of all sites; of one that is lost or not there yet it does not know the samples.

    Args:
        plan: the checked campaign.
        shards: what each site was asked for, in the order of the campaign.
        until: comes back when a condition holds.
        journal: is told of each lost site.

    Raises:
        CrossfedError: what a site answered when it was asked; or the first loss, where too few are left.
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
                f"{_words(error)}; {left} of {len(shards)} sites are there and {needed} are needed",
                site=site,
                remedy="Resume when it is there again",
            ) from error
        reason = f"site {site}: {_words(error)}; the others begin without it, and it is asked again"
        journal.write("task_failed", app="enrol", site=site, round=0, reason=reason)
        logger.warning("%s", reason)
    for site in shards.keys() - answers.keys():
        logger.info("site %s has not started yet; the others begin", site)
    samples = {site: shards[site].result()["samples"] for site in answers.keys() - lost.keys()}
    return tuple(facts_of(plan.sites[site], samples.get(site, 0)) for site in shards)


def gather(shards: Collection[AppFuture], until: Callable[[Callable[[], bool]], None]) -> None:
    """Wait for the first site that is there, and a little for the others; a mistake is not waited on."""

    def settled() -> bool:
        return all(shard.done() for shard in shards) or any(_mistake(shard) for shard in shards)

    until(lambda: settled() or any(shard.done() and root_cause(shard) is None for shard in shards))
    closes = time.monotonic() + GATHER_S
    until(lambda: settled() or time.monotonic() > closes)


def _mistake(shard: AppFuture) -> BaseException | None:
    """What a site has answered that asking again would not change."""
    error = root_cause(shard) if shard.done() else None
    return None if isinstance(error, (*losses(), BlocksFailed)) else error


def _needed(plan: Plan) -> int:
    """Sites that the strategy cannot begin without; one without rounds takes whoever comes."""
    section = plan.campaign.strategy
    return (section.quorum or len(plan.sites)) if isinstance(section, SynchronousSection) else 1


def _words(error: BaseException) -> str:
    """A loss in a line, without its place."""
    return error.what if isinstance(error, CrossfedError) else f"{type(error).__name__}: {error}"[:REASON_LENGTH]

"""What the sites have, before the first round: a mistake ends the campaign at once, a lost site only where it must.

A wrong path, other code or a full disk is told before anything trains. A site whose workers or blocks are lost is
treated as in later rounds: the others begin if they are enough for the strategy, and with each order it is asked again
for what it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from parsl.dataflow.futures import AppFuture

from apps.errors import REASON_LENGTH, CrossfedError
from workflows.block_errors import BlocksFailed
from workflows.block_events import facts_of
from workflows.journal import Journal
from workflows.retries import losses
from workflows.strategies.base import SiteFacts
from workflows.strategies.fedavg import SynchronousSection

if TYPE_CHECKING:
    from workflows.preflight import Plan

logger = logging.getLogger(__name__)


def enrolled(
    plan: Plan, shards: Mapping[str, AppFuture], wait: Callable[[AppFuture], Any], journal: Journal
) -> tuple[SiteFacts, ...]:
    """What a strategy may know of all sites; of a lost one it does not know the samples yet.

    Args:
        plan: the checked campaign.
        shards: what each site was asked for, in the order of the campaign.
        wait: gives the result of a future, or raises what is at the root of its failure.
        journal: is told of each lost site.

    Raises:
        CrossfedError: what a site answered when it was asked; or the first loss, where too few are left.
    """
    samples: dict[str, int] = {}
    lost: dict[str, Exception] = {}
    kinds: tuple[type[Exception], ...] = (*losses(), BlocksFailed)
    for site, shard in shards.items():
        try:
            samples[site] = wait(shard)["samples"]
        except kinds as loss:
            lost[site] = loss
    needed = _needed(plan)
    for site, error in lost.items():
        if len(samples) < needed:
            raise CrossfedError(
                f"{_words(error)}; {len(samples)} of {len(shards)} sites are there and {needed} are needed", site=site,
                remedy="Resume when it is there again",
            ) from error  # fmt: skip
        reason = f"site {site}: {_words(error)}; the others begin without it, and it is asked again"
        journal.write("task_failed", app="enrol", site=site, round=0, reason=reason)
        logger.warning("%s", reason)
    return tuple(facts_of(plan.sites[site], samples.get(site, 0)) for site in shards)


def _needed(plan: Plan) -> int:
    """Sites that the strategy cannot begin without; one without rounds takes whoever comes."""
    section = plan.campaign.strategy
    return (section.quorum or len(plan.sites)) if isinstance(section, SynchronousSection) else 1


def _words(error: Exception) -> str:
    """A loss in a line, without its place."""
    return error.what if isinstance(error, CrossfedError) else f"{type(error).__name__}: {error}"[:REASON_LENGTH]

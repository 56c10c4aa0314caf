"""Enrolment of the sites before the first round.

A site that cannot enrol is treated as in later rounds: the others begin if they are enough for the strategy, and each
training request enrols it again. If they are not enough, a full disk at a site is waited for, and anything else, such
as a wrong path or other code, ends the campaign before anything trains. A site whose first job still waits in the
queue when others have started is not waited for, because their blocks would idle: it enrols when its job starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING

from parsl.dataflow.futures import AppFuture

from apps.base.errors import CrossfedError, SiteMistake, UserMistake, main_line
from workflows.dataflow.block_events import facts_of
from workflows.dataflow.waiting import WaitingSites, may_pass
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
    plan: Plan,
    shards: Mapping[str, AppFuture],
    until: Callable[[Callable[[], bool]], None],
    journal: Journal,
    waiting: WaitingSites,
    again: Callable[[str], object],
) -> tuple[SiteFacts, ...]:
    """Return the facts of all sites; a lost or queued site has 0 samples so far.

    Args:
        plan: the checked campaign.
        shards: futures of the enrolments, in the order of the campaign.
        until: returns when a condition holds.
        journal: receives a record of each lost site.
        waiting: keeps the sites that are asked again.
        again: submits a site's enrolment again.

    Raises:
        UserMistake: the request is wrong, whatever the quorum.
        CrossfedError: what is wrong at a site, or its loss, where too few sites are left.
    """
    needed = _needed(plan)
    while True:
        gather(shards.values(), until, len(shards) - needed)
        lost = {site: error for site, shard in shards.items() if shard.done() and (error := root_cause(shard))}
        for error in lost.values():
            if _is_of_all(error):
                raise error
        left = len(shards) - len(lost)
        held = [site for site, error in lost.items() if waiting.hold(site, 0, error, partial(again, site))]
        if left >= needed:
            break
        _require_waiting(lost, held, left, needed, len(shards))
        until(waiting.ask_again)
    for site, error in lost.items():
        waiting.waits.pop(site, None)  # from now on its training request is what is submitted again
        reason = f"site {site}: {_message(error)}; the others begin without it, and it is asked again"
        journal.write("task_failed", app="enrol", site=site, round=0, reason=reason)
        logger.warning("%s", reason)
    for site, shard in shards.items():
        if not shard.done():
            logger.info("site %s has not started yet; the others begin", site)
    samples = {site: shard.result()["samples"] for site, shard in shards.items() if shard.done() and site not in lost}
    for site in samples:
        waiting.succeeded(site)
    return tuple(facts_of(plan.sites[site], samples.get(site, 0)) for site in shards)


def _require_waiting(
    lost: Mapping[str, BaseException], held: Collection[str], left: int, needed: int, count: int
) -> None:
    """Raise a failure that will not pass, if the sites that wait would not be enough either."""
    final = {site: error for site, error in lost.items() if site not in held}
    if count - len(final) >= needed:
        return
    for error in filter(_is_mistake, final.values()):
        raise error
    site, error = next(iter(final.items()))
    raise CrossfedError(
        f"{_message(error)}; {left} of {count} sites are available and {needed} are needed",
        site=site,
        remedy="Resume when it is available again",
    ) from error


def gather(shards: Collection[AppFuture], until: Callable[[Callable[[], bool]], None], spare: int = 0) -> None:
    """Wait for the first site, then up to ``GATHER_S`` for the others.

    Args:
        shards: futures of the enrolments.
        until: returns when a condition holds.
        spare: number of sites that the strategy can do without; more mistakes than that end the wait at once.
    """

    def settled() -> bool:
        errors = [root_cause(shard) for shard in shards if shard.done()]
        mistakes = [error for error in errors if error is not None and _is_mistake(error)]
        return len(errors) == len(shards) or len(mistakes) > spare or any(map(_is_of_all, mistakes))

    until(lambda: settled() or any(shard.done() and root_cause(shard) is None for shard in shards))
    closes = time.monotonic() + GATHER_S
    until(lambda: settled() or time.monotonic() > closes)


def _is_of_all(error: BaseException) -> bool:
    """Return True for a mistake of the request itself; what a site says is wrong there ends that site alone."""
    return isinstance(error, UserMistake) and not isinstance(error, SiteMistake)


def _is_mistake(error: BaseException) -> bool:
    """Return True for an error of a site that asking again would not change."""
    return not isinstance(error, (*losses(), BlocksFailed)) and not may_pass(error)


def _needed(plan: Plan) -> int:
    """Return how many sites the strategy needs to begin; one without rounds begins with any."""
    section = plan.campaign.strategy
    return (section.quorum or len(plan.sites)) if isinstance(section, SynchronousSection) else 1


def _message(error: BaseException) -> str:
    """Return an error as one line, without its site and round."""
    return error.what if isinstance(error, CrossfedError) else f"{type(error).__name__}: {main_line(error)}"

"""A strategy's answer to an event; what it cannot compute with is the failure of the site whose numbers it used."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from workflows.strategies.base import Action, Event, SiteFailed, Strategy, UpdateArrived

if TYPE_CHECKING:
    from workflows.dataflow.engine import Engine

logger = logging.getLogger(__name__)


def reaction(strategy: Strategy, event: Event, engine: Engine) -> list[Action]:
    """Return the actions that follow an event.

    The event is in the journal already, so an error over an update would be there at each resume. The strategy is
    set back to before it and told that the site has failed: the replay comes to the same actions.

    Args:
        strategy: of the campaign.
        event: that has happened.
        engine: whose journal records the failure, once.
    """
    if not isinstance(event, UpdateArrived):
        return strategy.react(event)
    before = copy.deepcopy(vars(strategy))
    try:
        return strategy.react(event)
    except (ArithmeticError, ValueError) as error:
        vars(strategy).update(before)
        failed = f"the strategy cannot compute with its update: {type(error).__name__}: {error}"
        _record(engine, event, failed)
        return strategy.react(SiteFailed(event.time_s, event.site, event.task, failed))


def _record(engine: Engine, event: UpdateArrived, failed: str) -> None:
    journal, number = engine.run.journal, engine.requests.actions[event.task].round
    logger.error("site %s, round %d: %s", event.site, number, failed)
    if not any(record.get("task") == event.task for record in journal.events("task_failed")):
        reason = f"site {event.site}, round {number}: {failed}"
        place = {"app": "local_train", "site": event.site, "round": number, "task": event.task}
        journal.write("task_failed", **place, reason=reason)

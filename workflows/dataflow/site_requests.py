"""Requests to sites, from their submission to their end: an update, a failure, or a site that waits or is left out.

A site is asked to enrol, and to train in each round. A request whose files were lost on the way is submitted again at
once; one that fails for a reason that may pass is kept in ``waiting.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.base.errors import ArtifactError, ModelNotFinite, UpdateRefused
from workflows.dataflow.admission import Admission, PutAside
from workflows.dataflow.block_events import Handler
from workflows.dataflow.norm_bounds import NormBounds
from workflows.dataflow.replay import Clock
from workflows.dataflow.round import LocalRound, RoundGraph
from workflows.dataflow.staging import storage_hint
from workflows.dataflow.train_spec import train_request, update_event
from workflows.dataflow.waiting import WaitingSites
from workflows.records.changes import rounds_asked
from workflows.records.enrolments import record_enrolment
from workflows.records.failed_trainings import cause_of
from workflows.records.run_directory import RunDirectory
from workflows.runtime.kernel import root_cause
from workflows.strategies.base import Event, SiteFailed, Train, UpdateArrived

if TYPE_CHECKING:
    from parsl.dataflow.futures import AppFuture

    from workflows.planning.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteRound:
    """A site's part of a round: the strategy's action and its futures."""

    action: Train
    futures: LocalRound


class SiteRequests:
    """Submits what the strategy asks of the sites, and makes events of what follows.

    Args:
        plan: the checked campaign.
        run: the run directory.
        graph: submits the apps.
        models: the global models, by version.
        clock: of the campaign.
        norms: of the updates.
        admission: by held-out loss.
        put: hands a call to the engine's own thread.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        graph: RoundGraph,
        models: Mapping[int, AppFuture],
        clock: Clock,
        norms: NormBounds,
        admission: Admission,
        put: Callable[[Handler], None],
    ) -> None:
        self.plan, self.run, self.graph, self.models, self.clock, self.put = plan, run, graph, models, clock, put
        self.norms, self.admission = norms, admission
        self.waiting = WaitingSites(plan, run)
        self.shards: dict[str, AppFuture] = {}  # by site
        self.updates: dict[int, AppFuture] = {}  # staged in, by task
        self.rounds: dict[str, SiteRound] = {}  # the newest of each site
        self.actions: dict[int, Train] = {}  # by task
        self.last_task: dict[str, str] = {}  # site -> identity of its last finished task
        self.settled: set[int] = set()  # tasks whose end the strategy has received
        self.arrived: set[int] = set()  # those of them that ended with an update
        self.asked = rounds_asked(run.journal)

    def enrol(self, site: str) -> AppFuture:
        """Return the future of a site's data; a failed enrolment is submitted again."""
        shard = self.shards.get(site)
        if shard is None or (shard.done() and root_cause(shard) is not None):
            asked = self.shards[site] = self.graph.shard(site)
            asked.add_done_callback(lambda done: self.put((self._enrolled, (site, done))))
        return self.shards[site]

    def train(self, action: Train, attempt: int = 1) -> None:
        """Submit one site's part of a round: stage out, train, stage in."""
        site, number = action.site, action.round
        until = None if action.until_s is None else self.clock.unix(action.until_s)
        request = train_request(self.plan, action, self.asked, attempt, self.last_task.get(site), until)
        futures = self.graph.train_at(site, number, request, self.models[action.version], self.enrol(site), attempt)
        self._forget_earlier(action, futures)
        self.updates[action.task] = futures.update
        self.rounds[site] = SiteRound(action, futures)
        futures.update.add_done_callback(lambda done: self.put((self._arrived, (action, attempt, done))))

    def _forget_earlier(self, action: Train, futures: LocalRound) -> None:
        """Delete what the site keeps of its last round, once its next model has arrived."""
        before = self.rounds.get(action.site)
        if before is None or before.action.task == action.task or not before.futures.update.done():
            return
        if root_cause(before.futures.update) is None:
            self.graph.forget(action.site, action.round, futures.base, before.futures)

    def remember(self, event: Event) -> None:
        """Follow an event that the strategy is about to receive."""
        if isinstance(event, UpdateArrived | SiteFailed):
            self.settled.add(event.task)
        if isinstance(event, UpdateArrived):
            self.norms.remember(event, self.actions[event.task])
            self.arrived |= {event.task} if event.steps_done else set()
            self.last_task[event.site] = event.task_id

    def left_out(self) -> SiteFailed | None:
        """Return the failure of a waiting site whose round can close without it, or None."""
        action = self.waiting.left_out([r.action for r in self.rounds.values()], self.settled, self.arrived)
        if action is None:
            return None
        return SiteFailed(self.clock.now(), action.site, action.task, self.waiting.leave_out(action))

    def _enrolled(self, site: str, future: AppFuture) -> None:
        if root_cause(future) is None:
            record_enrolment(self.run.journal, site, future.result(), self.plan.campaign.data.max_tokens)

    def _too_far(self, action: Train, arrival: Mapping[str, Any]) -> UpdateRefused | None:
        """Return the refusal of an update that is far beyond what the campaign has counted so far."""
        first = self.models[0].result().get("norm")
        reason = self.norms.refusal(action, arrival["update_norm"], first)
        return UpdateRefused(reason, site=action.site, round=action.round) if reason else None

    def _arrived(self, action: Train, attempt: int, future: AppFuture) -> Event | None:
        if action.task in self.settled:
            return None
        error = root_cause(future)
        if error is None:
            self.waiting.succeeded(action.site)
            error = self._too_far(action, future.result())
        if error is None:
            if not self.admission.known(action, future, lambda: self.put((self._arrived, (action, attempt, future)))):
                return None
            error = self.admission.refusal(action, future)
        if error is None:
            return update_event(self.clock, action, future.result(), self.shards[action.site].result())
        if isinstance(error, ModelNotFinite):
            raise error
        if isinstance(error, ArtifactError) and attempt <= self.plan.campaign.retries:
            logger.warning("%s; the site is asked again", error)
            self.train(action, attempt + 1)
            return None
        if self.waiting.hold(action.site, action.round, error, lambda: self.train(action, attempt)):
            logger.warning("%s; the site waits", error)
            return None
        kind = "update_refused" if isinstance(error, UpdateRefused) else "task_failed"
        kind = "update_put_aside" if isinstance(error, PutAside) else kind
        reason = f"{error}{storage_hint(self.plan.sites[action.site], error)}"
        place = {"app": "local_train", "site": action.site, "round": action.round, "task": action.task}
        self.run.journal.write(kind, **place, reason=reason, **cause_of(error))
        logger.error("%s", reason)
        return SiteFailed(self.clock.now(), action.site, action.task, reason)

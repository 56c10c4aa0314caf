"""The live engine: a strategy's actions become Parsl apps, what happens to them becomes the strategy's events.

Dependencies travel as futures; the driver holds references, never tensors. A round's evaluation runs while the next
round trains. On a resume the recorded events are told to the strategy again in their order, the same dataflow is
submitted again, and Parsl finds in the journal what was already done.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from parsl.dataflow.futures import AppFuture

from apps.base.errors import ArtifactError, UpdateRefused
from apps.base.identity import Place
from apps.evaluate import evaluate
from apps.server import advance, aggregate, prepare, save_model
from apps.train import enrol, local_train
from apps.training.progress import Progress
from workflows.dataflow.block_events import BlockEvents, Handler
from workflows.dataflow.enrolment import enrolled
from workflows.dataflow.replay import Clock, decode_event, forget_failures, recorded_events
from workflows.dataflow.staging import Staging
from workflows.dataflow.train_spec import counted_updates, server_rule_spec, site_weights, train_request, update_event
from workflows.planning.labels import EVALUATOR, SERVER
from workflows.planning.plan import Plan
from workflows.records.changes import rounds_asked
from workflows.records.metrics import write_metrics
from workflows.records.run_directory import RunDirectory
from workflows.runtime.kernel import Kernel, root_cause
from workflows.strategies.base import (
    Aggregate,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    SetTimer,
    SiteFailed,
    TimerFired,
    Train,
    UpdateArrived,
)

logger = logging.getLogger(__name__)
TICK_S = 0.25


@dataclass(frozen=True)
class Flow:
    """The futures of a site's part of a round."""

    action: Train
    model: AppFuture
    base: AppFuture
    manifest: AppFuture
    update: AppFuture


class Engine:
    """Runs one plan in one run directory."""

    def __init__(self, plan: Plan, run: RunDirectory, kernel: Kernel, on_tick: Callable[[Engine], None]) -> None:
        self.plan, self.run, self.kernel, self.on_tick = plan, run, kernel, on_tick
        self.inbox: queue.SimpleQueue[Handler] = queue.SimpleQueue()
        self.clock = Clock(run.journal, run.opened["time"])
        self.blocks = BlockEvents(plan.sites, kernel, run.journal, self.clock, self.inbox.put)
        self.timers: list[tuple[float, str]] = []
        self.models: dict[int, Any] = {}  # version -> future of the result that carries it
        self.shards: dict[str, AppFuture] = {}
        self.orders: dict[int, Train] = {}
        self.updates: dict[int, AppFuture] = {}  # task -> stage-in future
        self.last_task: dict[str, str] = {}  # site -> identity of its last finished task
        self.background: list[AppFuture] = []  # evaluations that nobody waits for but the end
        self.settled: set[int] = set()  # tasks whose end the strategy knows
        self.counted: set[int] = set()  # tasks that are part of some model
        self.told_s = 0.0  # when the event happened that the strategy was told of last
        self.told = {r["version"] for r in run.journal.events("aggregated")}  # versions the journal knows of
        self.asked = rounds_asked(run.journal)
        self.recorded = recorded_events(run.journal)
        # what failed for good under an earlier driver; the strategy has gone on without it
        self.failed = {r["fields"]["task"] for r in self.recorded if r["kind"] == "SiteFailed"}
        self.flows: dict[str, Flow] = {}  # site -> what it does
        self.ways = Staging(plan, str(run.artifacts), self._submit, kernel.globus.staging)
        self.unwritten = False  # evaluations that metrics.csv does not have yet

    # -- apps ---------------------------------------------------------------------------------------------------

    def _submit(self, function: Callable[..., Any], site: str, round: int, *args: Any, on: str) -> AppFuture:
        return self.kernel.submit(function, Place(site=site, round=round), *args, on=on)

    def begin(self) -> None:
        """The model of round 0, and the sites' word on what they have."""
        self.models[0] = self._submit(prepare, EVALUATOR, 0, self.plan.server_work, on=EVALUATOR)
        for site in self.plan.sites:
            self._shard(site)
        self.evaluate("global", 0, self.models[0])

    def _shard(self, site: str) -> AppFuture:
        """What a site has to train on; one that could not tell is asked again."""
        told = self.shards.get(site)
        if told is None or (told.done() and root_cause(told) is not None):
            self.shards[site] = self._submit(enrol, site, 0, self.plan.site_work[site], on=site)
        return self.shards[site]

    def train(self, action: Train) -> None:
        """Stage out, train, stage in: one site's part of a round."""
        self.orders[action.task] = action
        if action.task not in self.failed:
            self._train(action, attempt=1)

    def _train(self, action: Train, attempt: int) -> None:
        site, number = action.site, action.round
        base = self.ways.out(site, number, self.models[action.version], attempt)
        until = None if action.until_s is None else self.clock.unix(action.until_s)
        order = train_request(self.plan, action, self.asked, attempt, self.last_task.get(site), until)
        manifest = self._submit(
            local_train, site, number, self.plan.site_work[site], order, base, self._shard(site), on=site
        )
        update = self.ways.back(site, number, manifest, base, attempt)
        self.updates[action.task] = update
        before = self.flows.get(site)
        if before and before.action.task != action.task and before.update.done() and root_cause(before.update) is None:
            self.ways.clear(site, number, base, before.base, before.manifest)
        self.flows[site] = Flow(action, self.models[action.version], base, manifest, update)
        update.add_done_callback(lambda future: self.inbox.put((self._arrived, (action, attempt, future))))

    def aggregate(self, action: Aggregate) -> None:
        """The next model, as a future that what comes after it waits for."""
        weights = [weight for _, weight in (*action.parts, *action.models)]
        terms = [self.updates[task] for task, _ in action.parts] + [self.models[v] for v, _ in action.models]
        mean = not action.models and action.server is None
        how = (weights, action.version) if mean else (weights, action.version, server_rule_spec(action))
        self.models[action.version] = self._submit(
            aggregate if mean else advance,
            SERVER,
            action.version,
            self.plan.server_work,
            self.models[action.base],
            *how,
            *terms,
            on=SERVER,
        )
        updates = counted_updates(action, self.orders, self.counted)
        self.counted.update(updates)
        if action.version not in self.told:
            self.run.journal.write(
                "aggregated",
                version=action.version,
                round=action.version,
                weights=site_weights(updates),
                updates=list(updates.values()),
                models=dict(action.models),
            )
        evaluation = self.plan.campaign.evaluation
        if action.version % evaluation.every == 0 or action.version == self.plan.campaign.rounds:
            self.evaluate("global", action.version, self.models[action.version])
            fresh = {update["site"]: task for task, update in updates.items() if update["new"]}
            for site, task in fresh.items() if evaluation.sites else ():
                self.evaluate(site, action.version, self.updates[task])

    def evaluate(self, who: str, number: int, candidate: AppFuture) -> None:
        future = self._submit(evaluate, EVALUATOR, number, self.plan.evaluation_work, candidate, who, on=EVALUATOR)
        self.background.append(future)
        future.add_done_callback(lambda done: self.inbox.put((self._evaluated, (done,))))

    def set_timer(self, action: SetTimer) -> None:
        self.timers = sorted([*self.timers, (action.at_s, action.name)])

    def request_block(self, action: RequestBlock) -> None:
        self.blocks.request(action.site, self.told_s)

    def release_block(self, action: ReleaseBlock) -> None:
        self.blocks.release(action.site)

    # -- events -------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """What the strategy is told: first what the journal knows, then what happens."""
        for record in self.recorded:
            self.clock.as_of(record["time"])
            yield self._remember(decode_event(record["kind"], record["fields"]))
        self.clock.as_of(time.time())
        for ended in self.blocks.go_live():
            yield self._record(ended)
        if not self.recorded:
            yield self._record(self._started())
        while True:
            if (event := self._next()) is not None:
                yield self._record(event)

    def _started(self) -> CampaignStarted:
        self._wait(self.models[0])
        facts = enrolled(self.plan, self.shards, self._until, self.run.journal)
        return CampaignStarted(self.clock.now(), facts)

    def _record(self, event: Event) -> Event:
        self.run.journal.write("strategy_event", kind=type(event).__name__, fields=asdict(event))
        return self._remember(event)

    def _remember(self, event: Event) -> Event:
        self.told_s = event.time_s
        self.blocks.remember(event)
        if isinstance(event, UpdateArrived | SiteFailed):
            self.settled.add(event.task)
        if isinstance(event, UpdateArrived):
            self.last_task[event.site] = event.task_id
        if isinstance(event, TimerFired):
            self.timers = [timer for timer in self.timers if timer[1] != event.name]
        return event

    def _next(self) -> Event | None:
        """The next thing that happens, or None after a moment without any."""
        self.on_tick(self)
        self.kernel.check_health()
        if self.timers and self.timers[0][0] <= self.clock.now():
            return TimerFired(self.clock.now(), self.timers[0][1])
        ended = self.blocks.look()
        if ended is not None:
            return ended
        try:
            handle, args = self.inbox.get(timeout=TICK_S)
        except queue.Empty:
            if self.unwritten:
                self.unwritten = False
                write_metrics(self.run)
            return None
        return handle(*args)

    def _arrived(self, action: Train, attempt: int, future: AppFuture) -> Event | None:
        if action.task in self.settled:
            return None
        error = root_cause(future)
        if error is None:
            return update_event(self.clock.now(), action, future.result(), self.shards[action.site].result())
        if isinstance(error, ArtifactError) and attempt <= self.plan.campaign.retries:
            logger.warning("%s; the site is asked again", error)
            self._train(action, attempt + 1)
            return None
        kind = "update_refused" if isinstance(error, UpdateRefused) else "task_failed"
        reason = f"{error}{self.ways.hint(action.site, error)}"
        self.run.journal.write(kind, app="local_train", site=action.site, round=action.round, reason=reason)
        logger.error("%s", reason)
        return SiteFailed(self.clock.now(), action.site, action.task, reason)

    def _evaluated(self, future: AppFuture) -> None:
        error = root_cause(future)
        if error is not None:
            raise error
        self.unwritten = True

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Wait for what still runs, and write the model that people take away."""
        last, folder = self.models[max(self.models)], str(self.run.path / "model")
        saved = self._submit(
            save_model, EVALUATOR, self.plan.campaign.rounds, self.plan.server_work, last, folder, on=EVALUATOR
        )
        for future in (*self.background, saved):
            self._wait(future)
        write_metrics(self.run)

    def give_up(self) -> None:
        """The campaign cannot go on now. A resume asks the sites again that have failed since the newest model."""
        forget_failures(self.run.journal)

    def _wait(self, future: AppFuture) -> Any:
        """A result that the campaign cannot go on without."""
        self._until(future.done)
        error = root_cause(future)
        if error is not None:
            raise error
        return future.result()

    def _until(self, happened: Callable[[], bool]) -> None:
        while not happened():  # the display stays alive meanwhile
            self.on_tick(self)
            self.kernel.check_health()
            time.sleep(0.05)

    def phase(self, site: str) -> tuple[str, Progress | None]:
        """What a site is doing, in a word, and how far its training is."""
        word, progress = self._phase(site)
        watch = self.kernel.watches.get(site)
        if watch and word in ("starting", "asking", "queued", "loading", "training") and not watch.running():
            return watch.state(), None
        return word, progress

    def _phase(self, site: str) -> tuple[str, Progress | None]:
        flow = self.flows.get(site)
        if site in self.blocks.asked_s and (flow is None or flow.update.done()):
            return "asking", None
        if flow is None:
            enrolled = site in self.shards and self.shards[site].done()
            return ("ready" if enrolled else self.kernel.globus.task_text(site) or "starting"), None
        if flow.update.done():
            return "idle", None
        if flow.manifest.done():
            return self.kernel.globus.transfer_text(site) or "returning", None
        if flow.base.done():
            progress = self.kernel.progress(site)
            if progress and progress["round"] == flow.action.round:
                return progress["phase"], progress
            return self.kernel.globus.task_text(site, flow.base) or "queued", None
        return (self.kernel.globus.transfer_text(site) or "staging") if flow.model.done() else "idle", None

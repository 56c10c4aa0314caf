"""The live engine: turns a strategy's actions into Parsl apps, and their results into the strategy's events.

The graph of a round is in ``round.py``, what follows a request to a site in ``site_requests.py``; here are the models,
the events and the replay after a resume. A round's evaluation runs while the next round trains. On a resume the
recorded events are given to the strategy again in their order, the same dataflow is submitted again, and Parsl finds in
the journal which tasks are finished.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from parsl.dataflow.futures import AppFuture

from workflows.dataflow.activity import SiteActivity, activity_of, block_activity, server_activity
from workflows.dataflow.admission import Admission
from workflows.dataflow.block_events import BlockEvents, Handler
from workflows.dataflow.enrolment import enrolled
from workflows.dataflow.located import located
from workflows.dataflow.norm_bounds import Clip, NormBounds, clip_text
from workflows.dataflow.replay import (
    Clock,
    decode_event,
    forget_failures,
    open_failures,
    recorded_events,
    require_same_aggregation,
)
from workflows.dataflow.round import RoundGraph
from workflows.dataflow.site_requests import SiteRequests
from workflows.dataflow.train_spec import counted_updates, robust_spec, server_rule_spec, site_weights
from workflows.planning.labels import EVALUATOR
from workflows.planning.plan import Plan
from workflows.records.metrics import MetricsFile
from workflows.records.run_directory import RunDirectory
from workflows.records.scores import require_finite
from workflows.runtime.block_failures import BlocksFailed
from workflows.runtime.kernel import Kernel, root_cause
from workflows.runtime.retry_policy import losses
from workflows.strategies import has_rounds
from workflows.strategies.base import (
    Aggregate,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    SetTimer,
    TimerFired,
    Train,
)

TICK_S = 0.25


class Engine:
    """Runs one plan in one run directory.

    Args:
        plan: the checked campaign.
        run: the run directory, held by this driver.
        kernel: the running Parsl.
        on_tick: called while nothing happens; keeps the display alive.
    """

    def __init__(self, plan: Plan, run: RunDirectory, kernel: Kernel, on_tick: Callable[[Engine], None]) -> None:
        self.plan, self.run, self.kernel, self.on_tick = plan, run, kernel, on_tick
        self.graph = RoundGraph(plan, kernel.app, kernel.globus.staging)
        self.inbox: queue.SimpleQueue[Handler] = queue.SimpleQueue()
        self.clock = Clock(run.journal, run.opened["time"])
        self.blocks = BlockEvents(plan.sites, kernel, run.journal, self.clock, self.inbox.put)
        self.timers: list[tuple[float, str]] = []
        self.models: dict[int, AppFuture] = {}  # by version
        campaign = plan.campaign
        self.norms = NormBounds(campaign.checks, has_rounds(campaign.strategy.name), campaign.training.steps)
        bound = campaign.checks.max_loss_increase
        admission = Admission(bound, run.journal, self.models, self._evaluate, plan.evaluation_at)
        self.requests = SiteRequests(
            plan, run, self.graph, self.models, self.clock, self.norms, admission, self.inbox.put
        )
        self.scored: dict[tuple[str, int], AppFuture] = {}  # by the name and number of the model
        self.evaluations: dict[AppFuture, int] = {}
        self.metrics = MetricsFile(run.path / "metrics.csv", run.journal)
        self.metrics_due = False  # metrics.csv lacks a finished evaluation
        self.counted: set[int] = set()  # tasks that are part of a model
        self.event_s = 0.0  # when the event happened that the strategy received last
        self.aggregated = {record["version"]: record for record in run.journal.events("aggregated")}
        self.recorded = recorded_events(run.journal)
        # failed for good under an earlier driver; the strategy has continued without them
        self.failed = {r["fields"]["task"] for r in self.recorded if r["kind"] == "SiteFailed"}

    # -- actions ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Submit the first model, its evaluation, and the enrolment of every site."""
        self.models[0] = self.graph.first_model()
        for site in self.plan.sites:
            self.requests.enrol(site)
        self._evaluate("global", 0, self.models[0])

    def train(self, action: Train) -> None:
        """Submit one site's part of a round: stage out, train, stage in."""
        self.requests.actions[action.task] = action
        if action.task not in self.failed:
            self.requests.train(action)

    def aggregate(self, action: Aggregate) -> None:
        """Submit the next model, and its evaluation if one is due."""
        weights = [weight for _, weight in (*action.parts, *action.models)]
        terms = [self.requests.updates[task] for task, _ in action.parts] + [self.models[v] for v, _ in action.models]
        clips = self.norms.clips(action)
        updates = counted_updates(action, self.requests.actions, self.counted, clips)
        self._record_aggregation(action, updates, clips)
        self.counted.update(updates)
        factors = [clips[task].factor if task in clips else 1.0 for task, _ in action.parts]
        rules = server_rule_spec(action), robust_spec(action)
        model = self.graph.next_model(action.version, self.models[action.base], weights, rules, terms, factors)
        self.models[action.version] = model
        evaluation = self.plan.campaign.evaluation
        if action.version % evaluation.every == 0 or action.version == self.plan.campaign.rounds:
            self._evaluate("global", action.version, model)
            fresh = {update["site"]: task for task, update in updates.items() if update["new"]}
            for site, task in fresh.items() if evaluation.sites else ():
                self._evaluate(site, action.version, self.requests.updates[task])

    def _record_aggregation(self, action: Aggregate, updates: dict[int, Any], clips: Mapping[int, Clip]) -> None:
        """Record what a model is made of; at a resume compare it with the record that is there."""
        asked = {"weights": site_weights(updates), "updates": list(updates.values()), "models": dict(action.models)}
        if action.version in self.aggregated:
            require_same_aggregation(self.aggregated[action.version], asked)
        else:
            self.run.journal.write("aggregated", version=action.version, round=action.version, **asked)
            for task, clip in clips.items():
                if clip.factor < 1 and updates[task]["new"]:
                    place = {"site": updates[task]["site"], "round": updates[task]["order"]}
                    self.run.journal.write("update_clipped", **place, **asdict(clip), reason=clip_text(clip))

    def _evaluate(self, who: str, number: int, candidate: AppFuture) -> AppFuture:
        """Return the evaluation of a model; one that is asked for again is the same."""
        if (who, number) not in self.scored:
            future = self.scored[who, number] = self.graph.losses(who, number, candidate)
            self.evaluations[future] = number
            future.add_done_callback(lambda done: self.inbox.put((self._evaluated, (number, done))))
        return self.scored[who, number]

    def set_timer(self, action: SetTimer) -> None:
        """Send the strategy an event at a time of the campaign."""
        self.timers = sorted([*self.timers, (action.at_s, action.name)])

    def request_block(self, action: RequestBlock) -> None:
        """Ask a site for a block; an event follows when it starts."""
        self.blocks.request(action.site, self.event_s)

    def release_block(self, action: ReleaseBlock) -> None:
        """Give a site's block back once it is idle."""
        self.blocks.release(action.site)

    # -- events -------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Yield the recorded events of earlier drivers, then new ones as they happen."""
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
        asked = self.requests
        facts = enrolled(self.plan, asked.shards, self._until, self.run.journal, asked.waiting, asked.enrol)
        return CampaignStarted(self.clock.now(), facts)

    def _record(self, event: Event) -> Event:
        self.run.journal.write("strategy_event", kind=type(event).__name__, fields=asdict(event))
        return self._remember(event)

    def _remember(self, event: Event) -> Event:
        self.event_s = event.time_s
        self.blocks.remember(event)
        self.requests.remember(event)
        if isinstance(event, TimerFired):
            self.timers = [timer for timer in self.timers if timer[1] != event.name]
        return event

    def _next(self) -> Event | None:
        """Return the next event, or None after a moment without one."""
        self.on_tick(self)
        self.kernel.check_health()
        if self.timers and self.timers[0][0] <= self.clock.now():
            return TimerFired(self.clock.now(), self.timers[0][1])
        self.requests.waiting.ask_again()
        ended = self.blocks.look() or self.requests.left_out()
        if ended is not None:
            return ended
        try:
            handle, args = self.inbox.get(timeout=TICK_S)
        except queue.Empty:
            if self.metrics_due and self.metrics.write_if_due():
                self.metrics_due = False
            return None
        return handle(*args)

    def _evaluated(self, number: int, future: AppFuture) -> None:
        """Take an evaluation's result; one that its place has lost stops no training, and fails at the end."""
        error = root_cause(future)
        if error is None:
            self.metrics_due = True
            require_finite(future.result(), self.plan.campaign.period)
        elif isinstance(error, (*losses(), BlocksFailed)):
            reason = str(located(error, self.plan.evaluation_at, number))
            self.run.journal.write("task_failed", app="evaluate", site=EVALUATOR, round=number, reason=reason)
        else:
            raise located(error, self.plan.evaluation_at, number)

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the final model as users load it, and wait for the running evaluations."""
        saved = self.graph.final_model(self.models[max(self.models)], str(self.run.path / "model"))
        for future in (saved, *self.evaluations):
            self._wait(future)
        self.metrics.write()
        for evaluation in self.evaluations:
            require_finite(evaluation.result(), self.plan.campaign.period)

    def give_up(self) -> None:
        """End a campaign that cannot continue now; a resume asks the sites again that have failed since."""
        forget_failures(self.run.journal)

    def ended_by_earlier_failure(self) -> bool:
        """Return True if a failure that an earlier driver recorded counts for the round that has just ended.

        That driver could not record that it gave up, because it was killed or its disk was full.
        """
        return bool(open_failures(self.run.journal, self.recorded))

    def _wait(self, future: AppFuture) -> Any:
        """Return a result that the campaign cannot do without; raises its error."""
        self._until(future.done)
        error = root_cause(future)
        if error is not None:
            number = self.evaluations.get(future)
            raise located(error, self.plan.server_at if number is None else self.plan.evaluation_at, number)
        return future.result()

    def _until(self, happened: Callable[[], bool]) -> None:
        while not happened():  # the display stays alive meanwhile
            self.on_tick(self)
            self.kernel.check_health()
            time.sleep(0.05)

    def activity(self, site: str) -> SiteActivity:
        """Return what a site, or a block of the server's own work, is doing, for the display."""
        if site not in self.plan.sites:
            return block_activity(site, self.kernel)
        newest, shard = self.requests.rounds.get(site), self.requests.shards.get(site)
        found = activity_of(
            site,
            self.kernel,
            newest.futures if newest else None,
            newest.action.round if newest else 0,
            enrolled=shard is not None and shard.done(),
            asking=site in self.blocks.asked_s,
            begun=bool(self.event_s),
            waits=self.requests.waiting.text(site),
        )
        preparing = found.phase == "gathering" and not self.models[0].done()
        return replace(found, phase="preparing") if preparing else found

    def server_activity(self) -> str:
        """Return what the server and the evaluator are doing, for the display; empty if they wait for the sites."""
        updates = [site_round.futures.update for site_round in self.requests.rounds.values()]
        return server_activity(list(self.models.values()), updates, list(self.evaluations))

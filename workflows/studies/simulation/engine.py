"""The virtual engine: carries out a strategy's actions at simulated facilities, on SimPy's clock.

The strategy is the one that the live engine drives. The events at a site are in site.py; here are the server, the
clock and the records. The same seed gives the same campaign, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.console.units import HOUR_S
from workflows.strategies.base import (
    Aggregate,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    SetTimer,
    SiteFacts,
    Stop,
    Strategy,
    TimerFired,
    Train,
)
from workflows.studies.simulation.facility import Facility
from workflows.studies.simulation.problem import LocalWork, Problem
from workflows.studies.simulation.result import CampaignResult, ModelPoint
from workflows.studies.simulation.server import Moments, combined, stepped
from workflows.studies.simulation.site import Process, SiteContext, VirtualSite
from workflows.studies.simulation.waits import Waits

if TYPE_CHECKING:
    import numpy as np
    from simpy import Environment


class VirtualEngine:
    """One simulated campaign."""

    def __init__(
        self, strategy: Strategy, facilities: tuple[Facility, ...], waits: Waits, problem: Problem, seed: int
    ) -> None:
        import simpy

        self.strategy, self.problem = strategy, problem
        self.env: Environment = simpy.Environment()
        self.over = self.env.event()
        context = SiteContext(self.env, self.send, self._train, self._returned, waits, problem.nbytes, seed)
        self.sites = {site.name: VirtualSite(number, site, context) for number, site in enumerate(facilities)}
        self.models: dict[int, np.ndarray] = {0: problem.first()}
        self.moments: dict[int, Moments] = {}
        self.updates: dict[int, np.ndarray] = {}
        self.gradients: dict[int, np.ndarray] = {}  # mean plain gradient of a task, if corrections are used
        self.requests: dict[int, Train] = {}
        self.done: dict[int, tuple[int, float]] = {}  # task -> steps, node seconds
        self.counted: set[int] = set()
        self.learned: dict[int, np.ndarray] = {}  # version -> weighted steps of each site in it
        self.points: list[ModelPoint] = []
        self.staleness: list[int] = []
        self.failure: str | None = None

    # -- the campaign -------------------------------------------------------------------------------------------

    def run(self, budget_s: float, target: float | None = None) -> CampaignResult:
        """Simulate until the strategy stops, the budget of virtual seconds is spent, or the loss is at ``target``."""
        import numpy as np

        self.target = target
        self.learned[0] = np.zeros(len(self.sites))
        self._score(0)
        facts = tuple(
            SiteFacts(name, self.problem.samples[site.number], site.facility.max_jobs, site.facility.walltime_s)
            for name, site in self.sites.items()
        )
        self.send(CampaignStarted(0.0, facts))
        end = self.env.timeout(budget_s)
        if not self.over.triggered:
            self.env.run(self.env.any_of([self.over, end]))
        return self._result()

    def send(self, event: Event) -> None:
        """Send an event to the strategy and start the actions that it returns."""
        if self.over.triggered:
            return
        for action in self.strategy.react(event):
            match action:
                case Train():
                    self.requests[action.task] = action
                    self.env.process(self.sites[action.site].stage_out(action))
                case Aggregate():
                    self._aggregate(action)
                case RequestBlock(site):
                    self.sites[site].request()
                case ReleaseBlock(site):
                    self.sites[site].release = True
                    self.sites[site].wake()
                case SetTimer(name, at_s):
                    self.env.process(self._timer(name, at_s))
                case Stop(failure):
                    self._end(failure)

    def _end(self, failure: str | None) -> None:
        self.failure = failure
        if not self.over.triggered:
            self.over.succeed()

    def _timer(self, name: str, at_s: float) -> Process:
        yield self.env.timeout(max(0.0, at_s - self.env.now))
        self.send(TimerFired(self.env.now, name))

    # -- the server ---------------------------------------------------------------------------------------------

    def _aggregate(self, action: Aggregate) -> None:
        import numpy as np

        target, base = combined(action, self.models, self.updates), self.models[action.base]
        if action.server is None:
            self.models[action.version] = target
        else:
            before = self.moments.get(action.base, {})
            self.models[action.version], self.moments[action.version] = stepped(base, target, action.server, before)
        learned = np.zeros(len(self.sites))
        for version, weight in action.models:
            learned += weight * self.learned[version]
        for task, weight in action.parts:
            request = self.requests[task]
            learned += weight * self.learned[request.version]
            learned[self.sites[request.site].number] += weight * self.done[task][0]
            if weight > 0:
                self.counted.add(task)
                self.staleness.append(action.base - request.version)
        self.learned[action.version] = learned
        self._score(action.version)

    def _score(self, version: int) -> None:
        score = self.problem.score(self.models[version])
        self.points.append(ModelPoint(self.env.now, version, score, self._node_hours()))
        if self.target is not None and self.points[-1].score.loss <= self.target:
            self._end(None)

    # -- training at the sites --------------------------------------------------------------------------------------

    def _train(self, action: Train, steps: int, node_s: float) -> None:
        """Train for real, at the end of the virtual time of the work."""
        site = self.sites[action.site]
        work = LocalWork(site.number, action.round, steps, action.rate_factor, action.proximal_mu or 0.0)
        correction = self._correction(action) if action.correction else None
        self.updates[action.task] = self.problem.train(self.models[action.version], work, correction)
        self.done[action.task] = (steps, node_s)

    def _correction(self, action: Train) -> np.ndarray:
        terms = [factor * self._gradient(task) for task, factor in action.correction]
        return sum(terms[1:], start=terms[0])

    def _gradient(self, task: int) -> np.ndarray:
        """Return the mean plain gradient of a task whose update was returned."""
        if task not in self.gradients:
            request, steps = self.requests[task], self.done[task][0]
            moved = self.models[request.version] - self.updates[task]
            gradient = moved / (steps * self.problem.rate * request.rate_factor)
            self.gradients[task] = gradient - self._correction(request) if request.correction else gradient
        return self.gradients[task]

    def _returned(self, task: int) -> None:
        loss = self.problem.score(self.updates[task]).loss
        self.sites[self.requests[task].site].usage.losses.append((self.env.now, loss))

    def _node_hours(self) -> float:
        return sum(site.block_s() * site.facility.nodes for site in self.sites.values()) / HOUR_S

    # -- the end ------------------------------------------------------------------------------------------------

    def _result(self) -> CampaignResult:
        last = self.learned[max(self.models)]
        total = float(last.sum()) or 1.0
        for site in self.sites.values():
            site.close()
        node_hours = self._node_hours()
        useful_s = sum(node_seconds for task, (_, node_seconds) in self.done.items() if task in self.counted)
        return CampaignResult(
            self.points,
            {name: site.usage for name, site in self.sites.items()},
            self.staleness,
            {name: float(last[site.number]) / total for name, site in self.sites.items()},
            node_hours,
            node_hours - useful_s / HOUR_S,
            self.env.now,
            self.failure,
        )

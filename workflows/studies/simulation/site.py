"""One site of the virtual engine: waiting requests, blocks, and the training inside them.

A request is staged out, waits for a block, is trained there, and its update is staged in. A block is requested by the
strategy, or automatically when a request waits and no block runs or is queued. Our blocks start in the order of their
requests, and never more of them run than the queue's limits allow. A block without work for ``idle_timeout_s`` is
released. Work that a block has too little time for waits for the next one; work that the walltime or the strategy's
``until_s`` ends early is returned as partial work. The unfinished work of a preempted block is done again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workflows.console.units import HOUR_S
from workflows.strategies.base import BlockEnded, BlockStarted, Event, SiteFailed, Train, UpdateArrived
from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.facility import Facility
from workflows.studies.simulation.result import SiteUsage
from workflows.studies.simulation.waits import Waits

if TYPE_CHECKING:
    from simpy import Environment

Process = Generator[Any, Any, None]
RETRIES = 2  # of a request whose block was preempted
LEAST_SHARE = 0.5  # of a request's steps that a block must have time for


@dataclass
class ReceivedRequest:
    """A training request that has reached its site."""

    action: Train
    at_s: float
    attempts: int = 0


@dataclass(frozen=True)
class SiteContext:
    """Parts of the engine that a site uses."""

    env: Environment
    send: Callable[[Event], None]  # an event to the strategy
    train: Callable[[Train, int, float], None]  # request, steps, node seconds: make the update
    returned: Callable[[int], None]  # task: its update is at the server
    waits: Waits
    nbytes: float
    seed: int


class VirtualSite:
    """The state and the processes of one site."""

    def __init__(self, number: int, facility: Facility, context: SiteContext) -> None:
        import simpy

        self.number, self.facility, self.context, self.env = number, facility, context, context.env
        self.running = simpy.Resource(self.env, facility.max_running)
        self.work = self.env.event()  # triggered when there is news for an idle block
        self.queue: deque[ReceivedRequest] = deque()
        self.queued = 0  # blocks in the queue
        self.began: dict[int, float] = {}  # running blocks: number -> start
        self.requests = 0  # number of all block requests
        self.last_start_s = 0.0
        self.release = False
        self.usage = SiteUsage()

    def stage_out(self, action: Train) -> Process:
        """Bring a request and its model to the site."""
        yield self.env.timeout(self.facility.stage_out_s(self.context.nbytes))
        self.queue.append(ReceivedRequest(action, self.env.now))
        self.wake()
        self._provide()

    def wake(self) -> None:
        """Wake an idle block."""
        self.work.succeed()
        self.work = self.env.event()

    def _provide(self) -> None:
        """Request a block if training requests wait and none runs or is queued."""
        if self.queue and not self.queued and not self.began:
            self.request()

    def request(self) -> None:
        """Request a block, if the queue admits one more of ours."""
        if self.queued + len(self.began) < self.facility.max_jobs:
            self.queued += 1
            self.requests += 1
            self.env.process(self._block(self.requests))

    def _block(self, number: int) -> Process:
        """Simulate one batch job: the queue, the start, the work, the end."""
        facility, requested_s = self.facility, self.env.now
        start_s = max(requested_s + self.context.waits.wait_s(self.number, requested_s, number), self.last_start_s)
        self.last_start_s = start_s = facility.opens_s(start_s)
        yield self.env.timeout(start_s - requested_s)
        with self.running.request() as place:
            yield place
            began_s = self.env.now
            self.queued, self.began[number], self.release = self.queued - 1, began_s, False
            self.usage.blocks += 1
            self.usage.wait_s.append(began_s - requested_s)
            ends_s = self._ends(number)
            yield self.env.timeout(min(facility.startup_s, ends_s - began_s))
            wall_s = began_s + facility.walltime_s
            self.context.send(BlockStarted(self.env.now, facility.name, began_s - requested_s, wall_s))
            reason = yield from self._inside(wall_s, ends_s)
            self.usage.block_s += self.env.now - self.began.pop(number)
        self.context.send(BlockEnded(self.env.now, facility.name, reason))
        self._provide()

    def block_s(self) -> float:
        """Return the seconds of blocks until now, with those of running ones."""
        return self.usage.block_s + sum(self.env.now - began_s for began_s in self.began.values())

    def close(self) -> None:
        """Add the running blocks to the usage at the end of the campaign."""
        self.usage.block_s, self.began = self.block_s(), {}

    def _ends(self, number: int) -> float:
        """Return the latest end of a block: by its walltime or by preemption."""
        facility, wall_s = self.facility, self.env.now + self.facility.walltime_s
        if not facility.preemptions_an_hour:
            return wall_s
        killed_h = keyed(self.context.seed, "preempted", self.number, number).expovariate(facility.preemptions_an_hour)
        return min(wall_s, self.env.now + killed_h * HOUR_S)

    def _inside(self, wall_s: float, ends_s: float) -> Generator[Any, Any, str]:
        """Do the work of a running block; return the reason for its end."""
        facility = self.facility
        while self.env.now < ends_s:
            if not self.queue:
                if self.release:
                    return "released"
                limit_s = min(facility.idle_timeout_s, ends_s - self.env.now)
                idle = self.env.timeout(limit_s)
                yield self.work | idle
                if not self.queue and not self.release and idle.processed:
                    return "idle" if limit_s == facility.idle_timeout_s else "walltime"
                continue
            steps, step_s = self._planned(self.queue[0], wall_s)
            if steps < 1:
                return "walltime"
            arrival = self.queue.popleft()
            if self.env.now + steps * step_s > ends_s:
                yield self.env.timeout(ends_s - self.env.now)
                self._lost(arrival, "preempted")
                return "preempted"
            started_s = self.env.now
            yield self.env.timeout(steps * step_s)
            self._trained(arrival, steps, started_s)
        return "walltime"

    def _planned(self, arrival: ReceivedRequest, wall_s: float) -> tuple[int, float]:
        """Return the steps that a request gets in this block, 0 if too few fit, and the seconds of each."""
        facility, action = self.facility, arrival.action
        noise = keyed(self.context.seed, "speed", self.number, action.round).gauss(0, facility.jitter)
        step_s = facility.step_s * math.exp(noise)
        whole = int((facility.walltime_s - facility.startup_s - facility.saving_s) / step_s)
        wanted = max(1, min(action.steps or 1, whole))
        if action.until_s is not None:
            wanted = max(1, min(wanted, int((action.until_s - self.env.now) / step_s) + 1))
        fitting = int((wall_s - facility.saving_s - self.env.now) / step_s)
        return (0 if fitting < LEAST_SHARE * wanted else min(wanted, fitting)), step_s

    def _lost(self, arrival: ReceivedRequest, reason: str) -> None:
        """Repeat the work of a preempted block or a failed task a few times, as live; then report a failure."""
        self.usage.failures += 1
        if arrival.attempts < RETRIES:
            self.queue.appendleft(ReceivedRequest(arrival.action, arrival.at_s, arrival.attempts + 1))
        else:
            self.context.send(SiteFailed(self.env.now, self.facility.name, arrival.action.task, reason))

    def _trained(self, arrival: ReceivedRequest, steps: int, started_s: float) -> None:
        action, facility = arrival.action, self.facility
        key = (self.context.seed, "failed", self.number, action.round, action.task, arrival.attempts)
        if keyed(*key).random() < facility.failure_share:
            self._lost(arrival, "the task has failed")
            return
        train_s = self.env.now - started_s
        self.usage.steps += steps
        self.usage.tasks += 1
        self.usage.train_s += train_s
        self.context.train(action, steps, train_s * facility.nodes)
        wait_s = started_s - arrival.at_s
        event = UpdateArrived(0.0, facility.name, action.task, str(action.task), steps, steps, train_s, wait_s)
        self.env.process(self._stage_in(event))

    def _stage_in(self, event: UpdateArrived) -> Process:
        yield self.env.timeout(self.facility.stage_in_s(self.context.nbytes))
        self.context.returned(event.task)
        self.context.send(replace(event, time_s=self.env.now))

"""A random world for strategies: plays events and checks the invariants of every strategy at each one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    SetTimer,
    SiteFacts,
    SiteFailed,
    Stop,
    Strategy,
    TimerFired,
    Train,
    UpdateArrived,
)


@dataclass
class World:
    """State of the sites, and the events that may happen next."""

    make: Callable[[], Strategy]
    draw: random.Random
    failing: float = 0.1  # share of requests that fail
    now_s: float = 0.0
    version: int = 0
    requests: dict[int, Train] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)
    added: list[int] = field(default_factory=list)  # tasks that an aggregate counted positively
    removed: list[int] = field(default_factory=list)  # and negatively
    staleness: list[int] = field(default_factory=list)
    timers: dict[str, float] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)  # sites whose queue has a request
    blocks: list[str] = field(default_factory=list)  # sites with a block that was asked for
    released: list[str] = field(default_factory=list)
    means: list[Aggregate] = field(default_factory=list)
    echoing: int = 0  # so many of the last updates of each site count again and again
    stop: Stop | None = None

    def __post_init__(self) -> None:
        self.strategy = self.make()

    def play(self, sites: int, events: int) -> None:
        """Send random events to the strategy until it stops."""
        facts = tuple(SiteFacts(f"s{k}", self.draw.randint(1, 1000)) for k in range(sites))
        self.send(CampaignStarted(0.0, facts))
        for _ in range(events):
            if self.stop:
                return
            self.now_s += self.draw.expovariate(1 / 300)
            self.send(self.next_event())

    def next_event(self) -> Event:
        due = [name for name, at in self.timers.items() if at <= self.now_s]
        choices: list[tuple[str, str | int]] = [("timer", name) for name in due]
        choices += [("update", task) for task in self.open] + [("block", site) for site in self.wanted]
        choices += [("end", site) for site in self.released]
        if self.blocks and self.draw.random() < 0.1:
            choices = [("end", site) for site in self.blocks]
        if not choices:
            assert self.timers, "no request is open, no timer is set, and the strategy has not stopped"
            name = min(self.timers, key=lambda key: self.timers[key])
            self.now_s, choices = self.timers[name], [("timer", name)]
        kind, what = self.draw.choice(choices)
        return getattr(self, f"_{kind}")(what)

    def _timer(self, name: str) -> Event:
        del self.timers[name]
        return TimerFired(self.now_s, name)

    def _block(self, site: str) -> Event:
        self.wanted.remove(site)
        self.blocks.append(site)
        return BlockStarted(self.now_s, site, self.draw.expovariate(1e-3), self.now_s + 3600)

    def _end(self, site: str) -> Event:
        self.blocks.remove(site)
        self.released = [name for name in self.released if name != site]
        return BlockEnded(self.now_s, site, "walltime")

    def _update(self, task: int) -> Event:
        self.open.remove(task)
        request = self.requests[task]
        if self.draw.random() < self.failing:
            return SiteFailed(self.now_s, request.site, task, "worker lost")
        self.arrived.add(task)
        done = self.draw.randint(1, request.steps or 1)
        return UpdateArrived(
            self.now_s,
            request.site,
            task,
            f"id{task}",
            done,
            8 * done,
            done * self.draw.uniform(5, 30),
            self.draw.choice([0.0, self.draw.expovariate(1e-4)]),
        )

    def send(self, event: Event) -> None:
        """Send an event to the strategy and to a copy of it, compare their answers, check and carry out the actions."""
        twin = copy.deepcopy(self.strategy)
        answer = self.strategy.react(event)
        assert twin.react(event) == answer
        for action in answer:
            assert self.stop is None, f"{action} after the end"
            self.do(action)

    def do(self, action: Action) -> None:
        match action:
            case Train():
                self._check_request(action)
                self.requests[action.task] = action
                self.open.append(action.task)
            case Aggregate():
                self._check_aggregate(action)
            case SetTimer(name, at_s):
                assert at_s >= self.now_s
                self.timers[name] = at_s
            case RequestBlock(site):
                self.wanted.append(site)
            case ReleaseBlock(site):
                assert site in self.blocks
                self.released.append(site)
            case Stop():
                self.stop = action

    def _check_request(self, request: Train) -> None:
        assert request.task not in self.requests and 0 <= request.version <= self.version
        rounds = {(o.site, o.round) for o in self.requests.values() if o.task not in self.failed()}
        assert (request.site, request.round) not in rounds, "the same samples in the same order again"
        assert request.steps is not None and request.steps >= 1 and request.rate_factor > 0
        assert {task for task, _ in request.correction} <= self.arrived

    def failed(self) -> set[int]:
        return set(self.requests) - self.arrived - set(self.open)

    def _check_aggregate(self, mean: Aggregate) -> None:
        assert (mean.version, mean.base) == (self.version + 1, self.version)
        total = sum(weight for _, weight in (*mean.parts, *mean.models))
        assert total == pytest.approx(1, abs=1e-9)
        assert all(version <= self.version for version, _ in mean.models)
        assert len({version for version, _ in mean.models}) == len(mean.models)
        for task, weight in mean.parts:
            assert task in self.arrived and weight != 0
            request = self.requests[task]
            staleness = self.version - request.version
            assert staleness >= 0
            if weight > 0:
                self.staleness.append(staleness)
                arrived = sorted(t for t in self.arrived if self.requests[t].site == request.site)
                assert not self.echoing or task in arrived[-self.echoing :], "an old update of the site"
            (self.added if weight > 0 else self.removed).append(task)
        self.version = mean.version
        self.means.append(mean)

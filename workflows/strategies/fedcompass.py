"""FedCompass: the server gives every site so many steps that groups of sites arrive together.

On the arrival of site k at time t after Q steps its speed is ``v <- (1 - mu) v + mu (t - start) / Q`` (seconds a
step; the first time without the old value). Then

* join: of the groups with Q_min <= floor((T_exp - t) / v) <= Q_max the one with the most steps, or
* create: of the groups with t < T_lat the one that gives the most steps up to Q_max when met after the next pass of
  its fastest member, floor((T_lat + v_fastest Q_max - t) / v), at least Q_min; Q_max if there is none. The new group
  has T_exp = t + Q v and T_lat = t + lambda Q v.

A group is merged when all of it has arrived or at T_lat; who is late goes into the general buffer, which joins the
next merge. ``x <- (1 - sum a_k) x + sum a_k x_k,  a_k = alpha S(s_k) / m``.

The time between asking and arrival holds the wait in the queue, as published: one long wait makes a site look slow.

Source: Li et al., FedCompass, ICLR 2024 (arXiv 2309.14675); rules and defaults of APPFL's compass scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from workflows.console.units import plural
from workflows.strategies.base import (
    Action,
    Aggregate,
    CampaignStarted,
    Event,
    SetTimer,
    SiteFailed,
    Stop,
    StrategySection,
    TimerFired,
    UpdateArrived,
)
from workflows.strategies.ledger import Ledger, Order, as_plain, from_plain
from workflows.strategies.staleness import Staleness


class FedCompassSection(StrategySection):
    """``strategy: {name: fedcompass}``."""

    name: Literal["fedcompass"]
    alpha: float = Field(default=0.9, gt=0, le=1)
    staleness: Staleness = Staleness(kind="polynomial", a=0.5)
    latest_factor: float = Field(default=1.5, ge=1)  # lambda
    speed_momentum: float = Field(default=0.9, gt=0, le=1)  # mu
    min_steps: PositiveInt = 20
    max_steps: PositiveInt = 100
    patience: PositiveInt = 3  # failures in a row after which a site is left out
    rho: PositiveFloat | None = None  # proximal term; None: training.proximal_mu of the campaign

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps: {self.min_steps} is more than max_steps, {self.max_steps}")
        return self

    def strategy(self, rounds: int, steps: int) -> FedCompass:
        return FedCompass(rounds, self)


@dataclass
class Group:
    """Sites that are to arrive together."""

    expected_s: float
    latest_s: float
    members: list[str] = field(default_factory=list)  # still to arrive
    arrived: dict[str, int] = field(default_factory=dict)  # site -> task
    finished: bool = False


@dataclass
class Memory:
    """What the strategy knows."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    speed: dict[str, float] = field(default_factory=dict)  # seconds a step
    group_of: dict[str, int] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    next_group: int = 0
    starts: dict[int, int] = field(default_factory=dict)  # task that waits to be merged -> version it began with
    late: list[int] = field(default_factory=list)  # the general buffer: tasks


class FedCompass:
    """The semi-asynchronous algorithm; see the module for formulas and source."""

    def __init__(self, rounds: int, section: FedCompassSection) -> None:
        self.rounds, self.section, self.memory = rounds, section, Memory()

    def react(self, event: Event) -> list[Action]:
        memory = self.memory
        if isinstance(event, CampaignStarted):
            memory.ledger.enrol(event.sites)
            return [self._order(site, self.section.max_steps, event.time_s) for site in memory.ledger.samples]
        if isinstance(event, TimerFired) and event.name.startswith("group "):
            number = int(event.name.removeprefix("group "))
            return self._merge_group(number, event.time_s) if number in memory.groups else []
        if isinstance(event, UpdateArrived | SiteFailed):
            order = memory.ledger.close(event)
            if order is not None:
                return self._arrived(event, order)
        return []

    def _order(self, site: str, steps: int, now_s: float) -> Action:
        return self.memory.ledger.order(site, self.memory.version, steps, now_s, proximal_mu=self.section.rho)

    def _arrived(self, event: UpdateArrived | SiteFailed, order: Order) -> list[Action]:
        memory, site = self.memory, order.site
        number = memory.group_of.get(site)
        if isinstance(event, SiteFailed) or event.steps_done == 0:
            return self._left(site, number, event.time_s)
        self._measure(event, order)
        memory.starts[event.task] = order.version
        if number is None:
            return self._answer([self._merge([event.task])], [site], event.time_s)
        group = memory.groups[number]
        if event.time_s > group.latest_s:
            group.members.remove(site)
            memory.late.append(event.task)
            return self._assign(site, event.time_s)
        group.members.remove(site)
        group.arrived[site] = event.task
        return [] if group.members else self._merge_group(number, event.time_s)

    def _measure(self, event: UpdateArrived, order: Order) -> None:
        """Seconds a step between asking and arrival."""
        fresh = max((event.time_s - order.asked_s) / event.steps_done, 1e-9)
        known, mu = self.memory.speed.get(order.site), self.section.speed_momentum
        self.memory.speed[order.site] = fresh if known is None else (1 - mu) * known + mu * fresh

    def _left(self, site: str, number: int | None, now_s: float) -> list[Action]:
        """A site that has failed leaves its group and is asked again, unless it fails all the time."""
        memory, actions = self.memory, list[Action]()
        if number is not None:
            group = memory.groups[number]
            group.members.remove(site)
            memory.group_of.pop(site)
            if not group.members and group.arrived:
                actions += self._merge_group(number, now_s)
        if any(isinstance(action, Stop) for action in actions):
            return actions
        if memory.ledger.failures.get(site, 0) < self.section.patience:
            return [*actions, *self._assign(site, now_s)]
        if all(memory.ledger.failures.get(name, 0) >= self.section.patience for name in memory.ledger.samples):
            return [*actions, Stop(f"every site has failed {plural(self.section.patience, 'time')} in a row")]
        return actions

    def _merge_group(self, number: int, now_s: float) -> list[Action]:
        memory, group = self.memory, self.memory.groups[number]
        if group.finished:
            return []
        group.finished = True
        if not group.arrived and not memory.late:
            return []
        merged = self._merge([*memory.late, *group.arrived.values()])
        memory.late = []
        ready = sorted(group.arrived, key=lambda site: memory.speed[site])
        for site in ready:
            memory.group_of.pop(site)
        group.arrived = {}
        return self._answer([merged], ready, now_s)

    def _merge(self, tasks: list[int]) -> Aggregate:
        memory, count = self.memory, len(self.memory.ledger.samples)
        decay = self.section.staleness
        starts = [memory.starts.pop(task) for task in tasks]
        shares = [self.section.alpha * decay.weight(memory.version - start) / count for start in starts]
        base, memory.version = memory.version, memory.version + 1
        parts = tuple(zip(tasks, shares, strict=True))
        return Aggregate(memory.version, base, parts, ((base, 1 - sum(shares)),))

    def _answer(self, made: list[Action], ready: list[str], now_s: float) -> list[Action]:
        """New orders after a merge, or the end."""
        if self.memory.version >= self.rounds:
            return [*made, Stop()]
        return [*made, *(action for site in ready for action in self._assign(site, now_s))]

    def _assign(self, site: str, now_s: float) -> list[Action]:
        """The site joins a group or opens one."""
        memory = self.memory
        self._forget_done()
        joined = self._joined(site, now_s)
        if joined is not None:
            number, steps = joined
            memory.groups[number].members.append(site)
            memory.group_of[site] = number
            return [self._order(site, steps, now_s)]
        steps = self._steps_of_new_group(site, now_s)
        expected = steps * memory.speed.get(site, 0.0)
        number, memory.next_group = memory.next_group, memory.next_group + 1
        latest = now_s + self.section.latest_factor * expected
        if site not in memory.speed:  # it has failed before it was ever measured: alone, and merged when it comes
            memory.group_of.pop(site, None)
            return [self._order(site, steps, now_s)]
        memory.groups[number] = Group(now_s + expected, latest, [site])
        memory.group_of[site] = number
        return [self._order(site, steps, now_s), SetTimer(f"group {number}", latest)]

    def _joined(self, site: str, now_s: float) -> tuple[int, int] | None:
        speed, section = self.memory.speed.get(site), self.section
        if speed is None:
            return None
        steps = {n: int((g.expected_s - now_s) // speed) for n, g in self.memory.groups.items() if not g.finished}
        fitting = {n: q for n, q in steps.items() if section.min_steps <= q <= section.max_steps}
        return max(fitting.items(), key=lambda item: item[1]) if fitting else None

    def _steps_of_new_group(self, site: str, now_s: float) -> int:
        memory, section = self.memory, self.section
        speed = memory.speed.get(site)
        if speed is None:
            return section.max_steps
        found: list[int] = []
        for group in memory.groups.values():
            everyone = [*group.members, *group.arrived]
            if now_s < group.latest_s and everyone and not group.finished:
                meeting = group.latest_s + min(memory.speed[name] for name in everyone) * section.max_steps
                found.append(int((meeting - now_s) // speed))
        fitting = [steps for steps in found if 0 <= steps <= section.max_steps]
        return max(max(fitting), section.min_steps) if fitting else section.max_steps

    def _forget_done(self) -> None:
        """Groups that nobody is in any more."""
        groups = self.memory.groups
        self.memory.groups = {n: g for n, g in groups.items() if g.members or g.arrived}

    def state(self) -> dict[str, Any]:
        return as_plain(self.memory)

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state)

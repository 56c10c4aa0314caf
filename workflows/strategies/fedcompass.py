"""FedCompass: the server chooses the number of steps of every site so that groups of sites arrive together.

On the arrival of site k at time t after Q steps its speed is ``v <- (1 - mu) v + mu (t - start) / Q`` (seconds a
step; the first time without the old value). Then

* join: of the groups with Q_min <= floor((T_exp - t) / v) <= Q_max the one with the most steps, or
* create: of the groups with t < T_lat the one that gives the most steps up to Q_max when met after the next pass of
  its fastest member, floor((T_lat + v_fastest Q_max - t) / v), at least Q_min; Q_max if there is none. The new group
  has T_exp = t + Q v and T_lat = t + lambda Q v.

A group is merged when all of it has arrived or at T_lat; a late update goes into the general buffer, which joins the
next merge. ``x <- (1 - sum a_k) x + sum a_k x_k,  a_k = alpha S(s_k) / m``.

As published, the time from request to arrival includes the wait in the queue: one long wait makes a site look slow.

Source: Li et al., FedCompass, ICLR 2024 (arXiv 2309.14675); rules and defaults of APPFL's compass scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

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
from workflows.strategies.requests import OpenRequest, OpenRequests
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

    def strategy(self, rounds: int, _steps: int) -> FedCompass:
        return FedCompass(rounds, self)


@dataclass
class Group:
    """Sites that should arrive together."""

    expected_s: float
    latest_s: float
    members: list[str] = field(default_factory=list)  # without an update so far
    arrived: dict[str, int] = field(default_factory=dict)  # site -> task
    finished: bool = False


@dataclass
class FedCompassState:
    """State of FedCompass."""

    requests: OpenRequests = field(default_factory=OpenRequests)
    version: int = 0
    speed: dict[str, float] = field(default_factory=dict)  # seconds a step
    group_of: dict[str, int] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    next_group: int = 0
    starts: dict[int, int] = field(default_factory=dict)  # task that waits to be merged -> version it started from
    late: list[int] = field(default_factory=list)  # the general buffer: tasks


class FedCompass:
    """The semi-asynchronous algorithm; see the module for formulas and source."""

    def __init__(self, rounds: int, section: FedCompassSection) -> None:
        self.rounds, self.section, self.state = rounds, section, FedCompassState()

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""
        state = self.state
        if isinstance(event, CampaignStarted):
            state.requests.enrol(event.sites)
            return [self._request(site, self.section.max_steps, event.time_s) for site in state.requests.samples]
        if isinstance(event, TimerFired) and event.name.startswith("group "):
            number = int(event.name.removeprefix("group "))
            return self._merge_group(number, event.time_s) if number in state.groups else []
        if isinstance(event, UpdateArrived | SiteFailed):
            request = state.requests.close(event)
            if request is not None:
                return self._arrived(event, request)
        return []

    def _request(self, site: str, steps: int, now_s: float) -> Action:
        return self.state.requests.open(site, self.state.version, steps, now_s, proximal_mu=self.section.rho)

    def _arrived(self, event: UpdateArrived | SiteFailed, request: OpenRequest) -> list[Action]:
        state, site = self.state, request.site
        number = state.group_of.get(site)
        if isinstance(event, SiteFailed) or event.steps_done == 0:
            return self._site_failed(site, number, event.time_s)
        self._measure(event, request)
        state.starts[event.task] = request.version
        if number is None:
            return self._continue([self._merge([event.task])], [site], event.time_s)
        group = state.groups[number]
        if event.time_s > group.latest_s:
            group.members.remove(site)
            state.late.append(event.task)
            return self._assign(site, event.time_s)
        group.members.remove(site)
        group.arrived[site] = event.task
        return [] if group.members else self._merge_group(number, event.time_s)

    def _measure(self, event: UpdateArrived, request: OpenRequest) -> None:
        """Update a site's seconds a step, from request to arrival."""
        fresh = max((event.time_s - request.requested_s) / event.steps_done, 1e-9)
        known, mu = self.state.speed.get(request.site), self.section.speed_momentum
        self.state.speed[request.site] = fresh if known is None else (1 - mu) * known + mu * fresh

    def _site_failed(self, site: str, number: int | None, now_s: float) -> list[Action]:
        """Remove a failed site from its group and send it a new request, unless it fails all the time."""
        state, actions = self.state, list[Action]()
        if number is not None:
            group = state.groups[number]
            group.members.remove(site)
            state.group_of.pop(site)
            if not group.members and group.arrived:
                actions += self._merge_group(number, now_s)
        if any(isinstance(action, Stop) for action in actions):
            return actions
        if not state.requests.is_excluded(site, self.section.patience):
            return [*actions, *self._assign(site, now_s)]
        return [*actions, *state.requests.stop_if_none_left(self.section.patience)]

    def _merge_group(self, number: int, now_s: float) -> list[Action]:
        state, group = self.state, self.state.groups[number]
        if group.finished:
            return []
        group.finished = True
        if not group.arrived and not state.late:
            return []
        merged = self._merge([*state.late, *group.arrived.values()])
        state.late = []
        ready = sorted(group.arrived, key=lambda site: state.speed[site])
        for site in ready:
            state.group_of.pop(site)
        group.arrived = {}
        return self._continue([merged], ready, now_s)

    def _merge(self, tasks: list[int]) -> Aggregate:
        state, count = self.state, len(self.state.requests.samples)
        decay = self.section.staleness
        starts = [state.starts.pop(task) for task in tasks]
        shares = [self.section.alpha * decay.weight(state.version - start) / count for start in starts]
        base, state.version = state.version, state.version + 1
        parts = tuple(zip(tasks, shares, strict=True))
        return Aggregate(state.version, base, parts, ((base, 1 - sum(shares)),))

    def _continue(self, made: list[Action], ready: list[str], now_s: float) -> list[Action]:
        """Return the new requests after a merge, or the end of the campaign."""
        if self.state.version >= self.rounds:
            return [*made, Stop()]
        return [*made, *(action for site in ready for action in self._assign(site, now_s))]

    def _assign(self, site: str, now_s: float) -> list[Action]:
        """Return a request for a site, which joins a group or opens one."""
        state = self.state
        self._remove_empty_groups()
        joined = self._joined(site, now_s)
        if joined is not None:
            number, steps = joined
            state.groups[number].members.append(site)
            state.group_of[site] = number
            return [self._request(site, steps, now_s)]
        steps = self._steps_of_new_group(site, now_s)
        expected = steps * state.speed.get(site, 0.0)
        number, state.next_group = state.next_group, state.next_group + 1
        latest = now_s + self.section.latest_factor * expected
        if site not in state.speed:  # it has failed before it was measured: alone, and merged when it arrives
            state.group_of.pop(site, None)
            return [self._request(site, steps, now_s)]
        state.groups[number] = Group(now_s + expected, latest, [site])
        state.group_of[site] = number
        return [self._request(site, steps, now_s), SetTimer(f"group {number}", latest)]

    def _joined(self, site: str, now_s: float) -> tuple[int, int] | None:
        speed, section = self.state.speed.get(site), self.section
        if speed is None:
            return None
        steps = {n: int((g.expected_s - now_s) // speed) for n, g in self.state.groups.items() if not g.finished}
        fitting = {n: q for n, q in steps.items() if section.min_steps <= q <= section.max_steps}
        return max(fitting.items(), key=lambda item: item[1]) if fitting else None

    def _steps_of_new_group(self, site: str, now_s: float) -> int:
        state, section = self.state, self.section
        speed = state.speed.get(site)
        if speed is None:
            return section.max_steps
        found: list[int] = []
        for group in state.groups.values():
            everyone = [*group.members, *group.arrived]
            if now_s < group.latest_s and everyone and not group.finished:
                meeting = group.latest_s + min(state.speed[name] for name in everyone) * section.max_steps
                found.append(int((meeting - now_s) // speed))
        fitting = [steps for steps in found if 0 <= steps <= section.max_steps]
        return max(max(fitting), section.min_steps) if fitting else section.max_steps

    def _remove_empty_groups(self) -> None:
        """Remove the groups without a site."""
        groups = self.state.groups
        self.state.groups = {n: g for n, g in groups.items() if g.members or g.arrived}

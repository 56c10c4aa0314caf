"""FedQueue: predict the wait in the queue and give each site the steps that fit into the rest of the window.

For site k with predicted wait q_k, seconds a step c_k, window T, safety theta:

    q <- b_q w + (1 - b_q) q,   c <- b_c s + (1 - b_c) c       after an observed wait w and step time s
    J = max(0.5, T - q - theta);   E = max(floor(J / c), E_warm)
    eta_k = eta_0 min_j E_j / E_k                               over the sites whose c is known
    D = q + a_adm T                                             fixed at the request

An update whose wait was at most D is admitted; others wait in the late buffer for the merge after the next.
Updates are merged when every site has arrived or (1 + tol) T after the last merge; if none is admitted the late ones
are used. With s_k merges since the site was last given the model and phi(s) = 1 / (1 + beta s):

    x <- sum_k w_k x_k,   w_k = phi(s_k) p_k / sum_j phi(s_j) p_j

Only the sites that were merged get new requests.

Source: Li et al., FedQueue, ICML 2026 (arXiv 2605.02125); defaults of APPFL's queue scheduler, whose p_k are the
steps. The deadline uses the prediction made before the wait that is compared with it. Unlike there, of several sites
none has more than four fifths of the sum of the p_k: steps and samples are a site's own word. Where all phi are too
small for a number, the p_k alone count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

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
from workflows.strategies.requests import SHORTEST_STEP_S, OpenRequest, OpenRequests, bounded, seconds_a_step
from workflows.strategies.staleness import Staleness


class FedQueueSection(StrategySection):
    """``strategy: {name: fedqueue}``."""

    name: Literal["fedqueue"]
    window_s: PositiveFloat = 3600.0  # T
    safety_s: NonNegativeFloat = 60.0  # theta
    wait_factor: float = Field(default=0.5, gt=0, le=1)  # b_q
    speed_factor: float = Field(default=0.5, gt=0, le=1)  # b_c
    warm_steps: PositiveInt = 20  # E_warm
    first_wait_s: NonNegativeFloat = 2.0  # q before the first observed wait
    admission: NonNegativeFloat = 0.2  # a_adm
    tolerance: NonNegativeFloat = 0.15  # tol
    weights: Literal["steps", "samples", "equal"] = "steps"  # p_k
    staleness: Staleness = Staleness(kind="harmonic", a=0.5)
    scale_rate: bool = True

    def strategy(self, rounds: int, _steps: int) -> FedQueue:
        return FedQueue(rounds, self)


@dataclass
class PendingUpdate:
    """An update that waits to be merged."""

    task: int
    version: int
    steps: int


@dataclass
class FedQueueState:
    """State of FedQueue."""

    requests: OpenRequests = field(default_factory=OpenRequests)
    version: int = 0
    wait_s: dict[str, float] = field(default_factory=dict)  # q
    step_s: dict[str, float] = field(default_factory=dict)  # c
    deadline_s: dict[str, float] = field(default_factory=dict)  # D
    steps: dict[str, int] = field(default_factory=dict)  # E
    admitted: dict[str, PendingUpdate] = field(default_factory=dict)
    late: dict[str, PendingUpdate] = field(default_factory=dict)  # in this window
    later: dict[str, PendingUpdate] = field(default_factory=dict)  # late in an earlier window: merged next
    failed: list[str] = field(default_factory=list)
    windows: int = 0  # number of timers set


class FedQueue:
    """The windowed algorithm; see the module for formulas and source."""

    def __init__(self, rounds: int, section: FedQueueSection) -> None:
        self.rounds, self.section, self.state = rounds, section, FedQueueState()

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""
        state = self.state
        if isinstance(event, CampaignStarted):
            state.requests.enrol(event.sites)
            state.wait_s = dict.fromkeys(state.requests.samples, self.section.first_wait_s)
            return self._request_all(list(state.requests.samples), event.time_s)
        if isinstance(event, TimerFired) and event.name == f"window {state.windows}":
            return self._merge(event.time_s)
        if isinstance(event, UpdateArrived | SiteFailed):
            request = state.requests.close(event)
            if request is not None:
                self._record(event, request)
                return [] if state.requests.by_task else self._merge(event.time_s)
        return []

    def _record(self, event: UpdateArrived | SiteFailed, request: OpenRequest) -> None:
        state, section = self.state, self.section
        if isinstance(event, SiteFailed) or event.steps_done == 0:
            state.failed.append(request.site)
            return
        update = PendingUpdate(event.task, request.version, event.steps_done)
        in_time = event.wait_s <= state.deadline_s[request.site]
        (state.admitted if in_time else state.late)[request.site] = update
        site, step_s = request.site, max(seconds_a_step(event), SHORTEST_STEP_S)
        state.wait_s[site] = section.wait_factor * event.wait_s + (1 - section.wait_factor) * state.wait_s[site]
        known = state.step_s.get(site, step_s)
        state.step_s[site] = section.speed_factor * step_s + (1 - section.speed_factor) * known

    def _merge(self, now_s: float) -> list[Action]:
        state, made = self.state, list[Action]()
        merged = state.later | state.admitted
        if state.admitted or state.later:
            state.later = state.late
        else:
            merged, state.later = state.late, {}
        state.admitted, state.late = {}, {}
        if merged:
            made.append(self._mean(merged))
        elif len(state.failed) == len(state.requests.samples):
            return [Stop("no site has an update: all have failed in this window")]
        if state.version >= self.rounds:
            return [*made, Stop()]
        free, state.failed = [*merged, *state.failed], []
        return [*made, *self._request_all([s for s in state.requests.samples if s in free], now_s)]

    def _mean(self, merged: dict[str, PendingUpdate]) -> Aggregate:
        state = self.state
        present = [site for site in state.requests.samples if site in merged]
        amounts = bounded({site: self._amount(site, merged[site]) for site in present})
        fresh = {site: self.section.staleness.weight(state.version - merged[site].version) for site in present}
        raw = {site: amounts[site] * fresh[site] for site in present}
        raw = raw if sum(raw.values()) else amounts
        total = sum(raw.values())
        base, state.version = state.version, state.version + 1
        parts = tuple((merged[site].task, raw[site] / total) for site in present)
        return Aggregate(state.version, base, parts)

    def _amount(self, site: str, update: PendingUpdate) -> float:
        """Return p, not yet scaled to a sum of one."""
        return {"steps": update.steps, "samples": self.state.requests.samples[site], "equal": 1}[self.section.weights]

    def _request_all(self, sites: list[str], now_s: float) -> list[Action]:
        state, section = self.state, self.section
        for site in sites:
            state.steps[site] = self.budget(site)
            state.deadline_s[site] = state.wait_s[site] + section.admission * section.window_s
        known = [state.steps[site] for site in state.step_s]
        requests: list[Action] = []
        for site in sites:
            steps = state.steps[site]
            factor = min([*known, steps]) / steps if section.scale_rate else 1.0
            requests.append(state.requests.open(site, state.version, steps, now_s, rate_factor=factor))
        state.windows += 1
        cut_s = now_s + (1 + section.tolerance) * section.window_s
        return [*requests, SetTimer(f"window {state.windows}", cut_s)]

    def budget(self, site: str) -> int:
        """Return E, the steps that fit between the predicted end of the wait and the end of the window."""
        section, speed = self.section, self.state.step_s.get(site)
        if speed is None:
            return section.warm_steps
        room_s = max(0.5, section.window_s - self.state.wait_s[site] - section.safety_s)
        return max(int(room_s // speed), section.warm_steps)

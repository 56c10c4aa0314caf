"""FedAvg: every site trains from the same model; the mean of the sites' models is the next one.

    x <- sum_k p_k x_k,   p_k = n_k / n  (``weights: samples``)  or  1 / m  (``weights: equal``)

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017
(arXiv 1602.05629).

A site that fails in a round is left out of its mean if at least ``quorum`` updates have arrived, and gets a request
again in the next round. Without a quorum in the campaign every site is needed. With ``participants`` that many sites
are drawn for a round. After ``deadline_s`` a round ends with the quorum; a late site gets its next request when it is
free, and an update for a round that has ended is dropped.
With ``rule`` a robust rule takes the place of the mean (apps/artifacts/robust.py).

The synchronous family shares this round: a proximal term (FedProx), normalised steps (FedNova), corrected gradients
(SCAFFOLD) and an optimiser at the server (FedAvgM, FedAdagrad, FedAdam, FedYogi, DiLoCo) are described in files of
their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from workflows.console.units import plural
from workflows.strategies.base import (
    Action,
    Aggregate,
    CampaignStarted,
    Event,
    RobustRule,
    ServerRule,
    SetTimer,
    SiteFailed,
    Stop,
    StrategySection,
    TimerFired,
    Train,
    UpdateArrived,
    Weights,
)
from workflows.strategies.requests import LARGEST_FACTOR, OpenRequests, bounded, median_of_others, shares
from workflows.strategies.robust import Rule, misfit

FEWEST_STEPS = 0.1  # of the median of a round's other sites: fewer count as so many where steps divide a change


class SynchronousSection(StrategySection):
    """Settings that the synchronous strategies share."""

    weights: Weights = "samples"
    quorum: PositiveInt | None = None  # updates that a round needs; None: of every site
    participants: PositiveInt | None = None  # sites drawn for a round; None: all
    deadline_s: PositiveFloat | None = None  # of a round
    seed: NonNegativeInt = 0  # of the draw of participants
    rule: Rule = "mean"
    bad_sites: PositiveInt = 1  # updates of a round that may be bad; for a rule other than the mean

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.deadline_s is not None and self.quorum is None:
            raise ValueError("deadline_s: needs a quorum, the number of updates that is enough at the deadline")
        if self.quorum and self.participants and self.quorum > self.participants:
            raise ValueError(f"quorum: {self.quorum} is more than the {plural(self.participants, 'participant')}")
        if self.rule != "mean" and self.weights == "samples":
            raise ValueError(f"weights: {self.rule} counts all sites alike; set 'weights: equal'")
        return self

    @property
    def robust(self) -> RobustRule | None:
        """The robust rule, or None for the mean."""
        return None if self.rule == "mean" else RobustRule(self.rule, self.bad_sites)

    def misfit(self, sites: int, method: str | None) -> str | None:
        """Return what does not fit a campaign of so many sites with such adapters (None: without), or None."""
        if self.quorum and self.quorum > sites:
            return f"strategy.quorum: {self.quorum} is more than the {plural(sites, 'site')}"
        return misfit(self.rule, self.bad_sites, self.quorum or min(self.participants or sites, sites), method)

    def rounds_of(self, rounds: int, steps: int, **details: Any) -> FedAvg:
        """Return the synchronous algorithm with these settings and the details of a strategy."""
        return FedAvg(
            rounds,
            steps,
            self.weights,
            self.quorum,
            participants=self.participants,
            deadline_s=self.deadline_s,
            seed=self.seed,
            robust=self.robust,
            **details,
        )


class FedAvgSection(SynchronousSection):
    """``strategy: {name: fedavg}``."""

    name: Literal["fedavg"] = "fedavg"

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps)


@dataclass
class FedAvgState:
    """State of a synchronous strategy."""

    requests: OpenRequests = field(default_factory=OpenRequests)
    version: int = 0
    current: dict[int, str] = field(default_factory=dict)  # open tasks of this round -> site
    participants: list[str] = field(default_factory=list)  # sites that were asked to train in this round
    arrived: dict[str, int] = field(default_factory=dict)  # site -> task
    done: dict[str, int] = field(default_factory=dict)  # site -> steps done in this round
    failed: dict[str, str] = field(default_factory=dict)  # site -> reason
    overdue: bool = False
    waiting: bool = False  # for a free site
    last: dict[str, int] = field(default_factory=dict)  # site -> task of its last update that counted


class FedAvg:
    """The synchronous algorithm; see the module for formula and source."""

    def __init__(
        self,
        rounds: int,
        steps: int,
        weights: Weights,
        quorum: int | None,
        *,
        participants: int | None = None,
        deadline_s: float | None = None,
        seed: int = 0,
        proximal_mu: float | None = None,
        normalise: bool = False,
        corrected: bool = False,
        server: ServerRule | None = None,
        robust: RobustRule | None = None,
    ) -> None:
        self.rounds, self.steps, self.weights, self.quorum = rounds, steps, weights, quorum
        self.participants, self.deadline_s, self.seed = participants, deadline_s, seed
        self.proximal_mu, self.normalise, self.corrected, self.server = proximal_mu, normalise, corrected, server
        self.robust = robust
        self.state = FedAvgState()

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""
        state = self.state
        if isinstance(event, CampaignStarted):
            state.requests.enrol(event.sites)
            return self._begin_round(event.time_s)
        if isinstance(event, TimerFired) and event.name == f"round {state.version + 1}":
            state.overdue = True
            return self._end_round(event.time_s)
        if isinstance(event, UpdateArrived | SiteFailed) and state.requests.close(event):
            self._record(event)
            return self._begin_round(event.time_s) if state.waiting else self._end_round(event.time_s)
        return []

    def _begin_round(self, now_s: float) -> list[Action]:
        state, drawn = self.state, self._drawn()
        state.waiting = len(drawn) < (self.quorum or 1)
        state.participants, state.arrived, state.done, state.failed = [] if state.waiting else drawn, {}, {}, {}
        state.overdue = False
        requests: list[Action] = [self._request(site) for site in state.participants]
        if self.deadline_s is not None and requests:
            requests.append(SetTimer(f"round {state.version + 1}", now_s + self.deadline_s))
        return requests

    def _drawn(self) -> list[str]:
        """Return the sites of the next round, in the order of the campaign; a busy site is left out."""
        busy = self.state.requests.busy()
        free = [site for site in self.state.requests.samples if site not in busy]
        if self.participants is None or self.participants >= len(free):
            return free
        chosen = random.Random(f"{self.seed}/{self.state.version}").sample(free, self.participants)
        return [site for site in free if site in chosen]

    def _request(self, site: str) -> Train:
        state = self.state
        request = state.requests.open(
            site,
            state.version,
            self.steps,
            round=state.version + 1,
            proximal_mu=self.proximal_mu,
            correction=self._correction(site) if self.corrected else (),
        )
        state.current[request.task] = site
        return request

    def _correction(self, site: str) -> tuple[tuple[int, float], ...]:
        """Return c - c_k of SCAFFOLD, as factors on the mean gradients of earlier tasks."""
        last, count = self.state.last, len(self.state.requests.samples)
        return tuple((task, 1 / count - (owner == site)) for owner, task in last.items())

    def _record(self, event: UpdateArrived | SiteFailed) -> None:
        state = self.state
        site = state.current.pop(event.task, None)
        if site is None:
            return  # an update for a round that has ended without it
        if isinstance(event, SiteFailed):
            state.failed[site] = event.reason
        elif event.steps_done > 0:
            state.arrived[site], state.done[site] = event.task, event.steps_done
        else:
            state.failed[site] = "no step was done"

    def _end_round(self, now_s: float) -> list[Action]:
        state = self.state
        needed = self.quorum or len(state.participants)
        enough = len(state.arrived) >= needed
        if state.current and not (state.overdue and enough):
            return []
        if not enough:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in state.failed.items())
            have = f"{len(state.arrived)} of {plural(len(state.participants), 'update')}"
            return [Stop(f"round {state.version + 1} has {have} and needs {needed}: {reasons}")]
        state.current.clear()
        state.version += 1
        state.last |= state.arrived
        mean = self._mean()
        return [mean, *(self._begin_round(now_s) if state.version < self.rounds else [Stop()])]

    def _mean(self) -> Aggregate:
        """Return the aggregation, in the order of the campaign's sites whatever the order of arrival."""
        state, base = self.state, self.state.version - 1
        present = [site for site in state.requests.samples if site in state.arrived]
        share = shares(state.requests.samples, present, self.weights)
        if not self.normalise:
            parts = tuple((state.arrived[site], share[site]) for site in present)
            return Aggregate(state.version, base, parts, server=self.server, robust=self.robust)
        normalised = self._normalised(share)
        parts = tuple((state.arrived[site], normalised[site]) for site in present)
        rest = 1 - sum(weight for _, weight in parts)
        return Aggregate(state.version, base, parts, ((base, rest),), self.server)

    def _normalised(self, share: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of FedNova, within the limits that fednova.py names."""
        done = {site: self.state.done[site] for site in share}
        effective = sum(share[site] * done[site] for site in share)
        counted = {site: max(done[site], FEWEST_STEPS * median_of_others(done, site)) for site in share}
        return bounded({site: share[site] * min(LARGEST_FACTOR, effective / counted[site]) for site in share})

"""FedAvg: every site trains from the same model, the mean of their models is the next one.

    x <- sum_k p_k x_k,   p_k = n_k / n  (``weights: samples``)  or  1 / m  (``weights: equal``)

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017
(arXiv 1602.05629).

A site that fails in a round is left out of its mean if at least ``quorum`` updates are there, and asked again in
the next round. Without a quorum in the campaign every site is needed. With ``participants`` so many sites are drawn
for a round. After ``deadline_s`` a round ends with the quorum; a site that is late then is asked again once it is
free, and what it brings from a round that has ended is dropped.

The synchronous family shares this round: a proximal term (FedProx), normalised steps (FedNova), corrected gradients
(SCAFFOLD) and an optimiser at the server (FedAvgM, FedAdagrad, FedAdam, FedYogi, DiLoCo) are described in files of
their own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from workflows.console.units import plural
from workflows.strategies.base import (
    Action,
    Aggregate,
    CampaignStarted,
    Event,
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
from workflows.strategies.ledger import Ledger, as_plain, from_plain, shares


class SynchronousSection(StrategySection):
    """What the synchronous strategies have in common."""

    weights: Weights = "samples"
    quorum: PositiveInt | None = None  # updates a round needs; None: every site's
    participants: PositiveInt | None = None  # sites drawn for a round; None: all
    deadline_s: PositiveFloat | None = None  # of a round
    seed: NonNegativeInt = 0  # of the draw of participants

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.deadline_s is not None and self.quorum is None:
            raise ValueError("deadline_s: needs a quorum, the number of updates that is enough at the deadline")
        if self.quorum and self.participants and self.quorum > self.participants:
            raise ValueError(f"quorum: {self.quorum} is more than the {plural(self.participants, 'participant')}")
        return self

    def rounds_of(self, rounds: int, steps: int, **details: Any) -> FedAvg:
        """The synchronous round with these settings."""
        return FedAvg(
            rounds,
            steps,
            self.weights,
            self.quorum,
            participants=self.participants,
            deadline_s=self.deadline_s,
            seed=self.seed,
            **details,
        )


class FedAvgSection(SynchronousSection):
    """``strategy: {name: fedavg}``."""

    name: Literal["fedavg"] = "fedavg"

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps)


@dataclass
class Memory:
    """What the strategy knows."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    current: dict[int, str] = field(default_factory=dict)  # tasks of this round that are out
    asked: list[str] = field(default_factory=list)
    arrived: dict[str, int] = field(default_factory=dict)  # site -> task
    done: dict[str, int] = field(default_factory=dict)  # site -> steps it has done in this round
    failed: dict[str, str] = field(default_factory=dict)  # site -> reason
    overdue: bool = False
    waiting: bool = False  # for any site to be free
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
    ) -> None:
        self.rounds, self.steps, self.weights, self.quorum = rounds, steps, weights, quorum
        self.participants, self.deadline_s, self.seed = participants, deadline_s, seed
        self.proximal_mu, self.normalise, self.corrected, self.server = proximal_mu, normalise, corrected, server
        self.memory = Memory()

    def react(self, event: Event) -> list[Action]:
        memory = self.memory
        if isinstance(event, CampaignStarted):
            memory.ledger.enrol(event.sites)
            return self._begin_round(event.time_s)
        if isinstance(event, TimerFired) and event.name == f"round {memory.version + 1}":
            memory.overdue = True
            return self._end_round(event.time_s)
        if isinstance(event, UpdateArrived | SiteFailed) and memory.ledger.close(event):
            self._take(event)
            return self._begin_round(event.time_s) if memory.waiting else self._end_round(event.time_s)
        return []

    def _begin_round(self, now_s: float) -> list[Action]:
        memory, drawn = self.memory, self._drawn()
        memory.waiting = len(drawn) < (self.quorum or 1)
        memory.asked, memory.arrived, memory.done, memory.failed = [] if memory.waiting else drawn, {}, {}, {}
        memory.overdue = False
        orders: list[Action] = [self._order(site) for site in memory.asked]
        if self.deadline_s is not None and orders:
            orders.append(SetTimer(f"round {memory.version + 1}", now_s + self.deadline_s))
        return orders

    def _drawn(self) -> list[str]:
        """The sites of the next round, in the order of the campaign; a site that is still busy is left alone."""
        busy = self.memory.ledger.busy()
        free = [site for site in self.memory.ledger.samples if site not in busy]
        if self.participants is None or self.participants >= len(free):
            return free
        chosen = random.Random(f"{self.seed}/{self.memory.version}").sample(free, self.participants)
        return [site for site in free if site in chosen]

    def _order(self, site: str) -> Train:
        memory = self.memory
        order = memory.ledger.order(
            site,
            memory.version,
            self.steps,
            round=memory.version + 1,
            proximal_mu=self.proximal_mu,
            correction=self._correction(site) if self.corrected else (),
        )
        memory.current[order.task] = site
        return order

    def _correction(self, site: str) -> tuple[tuple[int, float], ...]:
        """c - c_k of SCAFFOLD, as factors on the mean gradients of earlier tasks."""
        last, count = self.memory.last, len(self.memory.ledger.samples)
        return tuple((task, 1 / count - (owner == site)) for owner, task in last.items())

    def _take(self, event: UpdateArrived | SiteFailed) -> None:
        memory = self.memory
        site = memory.current.pop(event.task, None)
        if site is None:
            return  # from a round that has ended without it
        if isinstance(event, SiteFailed):
            memory.failed[site] = event.reason
        elif event.steps_done > 0:
            memory.arrived[site], memory.done[site] = event.task, event.steps_done
        else:
            memory.failed[site] = "no step was done"

    def _end_round(self, now_s: float) -> list[Action]:
        memory = self.memory
        needed = self.quorum or len(memory.asked)
        enough = len(memory.arrived) >= needed
        if memory.current and not (memory.overdue and enough):
            return []
        if not enough:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in memory.failed.items())
            have = f"{len(memory.arrived)} of {plural(len(memory.asked), 'update')}"
            return [Stop(f"round {memory.version + 1} has {have} and needs {needed}: {reasons}")]
        memory.current.clear()
        memory.version += 1
        memory.last |= memory.arrived
        mean = self._mean()
        return [mean, *(self._begin_round(now_s) if memory.version < self.rounds else [Stop()])]

    def _mean(self) -> Aggregate:
        """Tasks and weights in the order of the campaign's sites, whatever the order of arrival."""
        memory, base = self.memory, self.memory.version - 1
        present = [site for site in memory.ledger.samples if site in memory.arrived]
        share = shares(memory.ledger.samples, present, self.weights)
        if not self.normalise:
            parts = tuple((memory.arrived[site], share[site]) for site in present)
            return Aggregate(memory.version, base, parts, server=self.server)
        effective = sum(share[site] * memory.done[site] for site in present)
        parts = tuple((memory.arrived[site], effective * share[site] / memory.done[site]) for site in present)
        rest = 1 - sum(weight for _, weight in parts)
        return Aggregate(memory.version, base, parts, ((base, rest),), self.server)

    def state(self) -> dict[str, Any]:
        return as_plain(self.memory)

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state)

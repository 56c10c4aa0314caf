"""FedQueue: predict the wait in the queue, and give each site the steps that fit into the window behind it.

For site k with predicted wait q_k, seconds a step c_k, window T, safety theta:

    q <- b_q w + (1 - b_q) q,   c <- b_c s + (1 - b_c) c       after an observed wait w and step time s
    J = max(0.5, T - q - theta);   E = max(floor(J / c), E_warm)
    eta_k = eta_0 min_j E_j / E_k                               over the sites whose c is known
    D = q + a_adm T                                             fixed when the work is given out

An update whose wait was at most D is admitted, another waits in the late buffer for the merge after the next.
Updates are merged when every site has arrived or (1 + tol) T after the last merge; with nothing admitted the late
ones are used. With s_k merges since the site was last given the model and phi(s) = 1 / (1 + beta s):

    x <- sum_k w_k x_k,   w_k = phi(s_k) p_k / sum_j phi(s_j) p_j

Only the sites that were merged are given new work.

Source: Li et al., FedQueue, ICML 2026 (arXiv 2605.02125); defaults of APPFL's queue scheduler, whose p_k are the
steps. The deadline uses the prediction made before the wait that it judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
from workflows.strategies.ledger import Ledger, Order, as_plain, from_plain
from workflows.strategies.staleness import Staleness


class FedQueueSection(StrategySection):
    """``strategy: {name: fedqueue}``."""

    name: Literal["fedqueue"]
    window_s: PositiveFloat = 3600.0  # T
    safety_s: NonNegativeFloat = 60.0  # theta
    wait_factor: float = Field(default=0.5, gt=0, le=1)  # b_q
    speed_factor: float = Field(default=0.5, gt=0, le=1)  # b_c
    warm_steps: PositiveInt = 20  # E_warm
    first_wait_s: NonNegativeFloat = 2.0  # q before any was seen
    admission: NonNegativeFloat = 0.2  # a_adm
    tolerance: NonNegativeFloat = 0.15  # tol
    weights: Literal["steps", "samples", "equal"] = "steps"  # p_k
    staleness: Staleness = Staleness(kind="harmonic", a=0.5)
    scale_rate: bool = True

    def strategy(self, rounds: int, steps: int) -> FedQueue:
        return FedQueue(rounds, self)


@dataclass
class Entry:
    """An update that waits to be merged."""

    task: int
    version: int
    steps: int


@dataclass
class Memory:
    """What the strategy knows."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    wait_s: dict[str, float] = field(default_factory=dict)  # q
    step_s: dict[str, float] = field(default_factory=dict)  # c
    deadline_s: dict[str, float] = field(default_factory=dict)  # D
    steps: dict[str, int] = field(default_factory=dict)  # E
    admitted: dict[str, Entry] = field(default_factory=dict)
    late: dict[str, Entry] = field(default_factory=dict)  # in this window
    later: dict[str, Entry] = field(default_factory=dict)  # late in an earlier window: next in line
    failed: list[str] = field(default_factory=list)
    windows: int = 0  # timers set


class FedQueue:
    """The windowed algorithm; see the module for formulas and source."""

    def __init__(self, rounds: int, section: FedQueueSection) -> None:
        self.rounds, self.section, self.memory = rounds, section, Memory()

    def react(self, event: Event) -> list[Action]:
        memory = self.memory
        if isinstance(event, CampaignStarted):
            memory.ledger.enrol(event.sites)
            memory.wait_s = dict.fromkeys(memory.ledger.samples, self.section.first_wait_s)
            return self._give_out(list(memory.ledger.samples), event.time_s)
        if isinstance(event, TimerFired) and event.name == f"window {memory.windows}":
            return self._merge(event.time_s)
        if isinstance(event, UpdateArrived | SiteFailed):
            order = memory.ledger.close(event)
            if order is not None:
                self._take(event, order)
                return [] if memory.ledger.out else self._merge(event.time_s)
        return []

    def _take(self, event: UpdateArrived | SiteFailed, order: Order) -> None:
        memory, section = self.memory, self.section
        if isinstance(event, SiteFailed) or event.steps_done == 0:
            memory.failed.append(order.site)
            return
        entry = Entry(event.task, order.version, event.steps_done)
        in_time = event.wait_s <= memory.deadline_s[order.site]
        (memory.admitted if in_time else memory.late)[order.site] = entry
        site, step_s = order.site, max(event.train_s / event.steps_done, 1e-9)
        memory.wait_s[site] = section.wait_factor * event.wait_s + (1 - section.wait_factor) * memory.wait_s[site]
        known = memory.step_s.get(site, step_s)
        memory.step_s[site] = section.speed_factor * step_s + (1 - section.speed_factor) * known

    def _merge(self, now_s: float) -> list[Action]:
        memory, made = self.memory, list[Action]()
        merged = memory.later | memory.admitted
        if memory.admitted or memory.later:
            memory.later = memory.late
        else:
            merged, memory.later = memory.late, {}
        memory.admitted, memory.late = {}, {}
        if merged:
            made.append(self._mean(merged))
        elif len(memory.failed) == len(memory.ledger.samples):
            return [Stop("no site has an update: all have failed in this window")]
        if memory.version >= self.rounds:
            return [*made, Stop()]
        free, memory.failed = [*merged, *memory.failed], []
        return [*made, *self._give_out([s for s in memory.ledger.samples if s in free], now_s)]

    def _mean(self, merged: dict[str, Entry]) -> Aggregate:
        memory = self.memory
        present = [site for site in memory.ledger.samples if site in merged]
        raw = {site: self._share(site, merged[site]) for site in present}
        total = sum(raw.values())
        base, memory.version = memory.version, memory.version + 1
        parts = tuple((merged[site].task, raw[site] / total) for site in present)
        return Aggregate(memory.version, base, parts)

    def _share(self, site: str, entry: Entry) -> float:
        """phi(s) p before they are made to sum to one."""
        amount = {"steps": entry.steps, "samples": self.memory.ledger.samples[site], "equal": 1}[self.section.weights]
        return amount * self.section.staleness.weight(self.memory.version - entry.version)

    def _give_out(self, sites: list[str], now_s: float) -> list[Action]:
        memory, section = self.memory, self.section
        for site in sites:
            memory.steps[site] = self.budget(site)
            memory.deadline_s[site] = memory.wait_s[site] + section.admission * section.window_s
        known = [memory.steps[site] for site in memory.step_s]
        orders: list[Action] = []
        for site in sites:
            steps = memory.steps[site]
            factor = min([*known, steps]) / steps if section.scale_rate else 1.0
            orders.append(memory.ledger.order(site, memory.version, steps, now_s, rate_factor=factor))
        memory.windows += 1
        cut_s = now_s + (1 + section.tolerance) * section.window_s
        return [*orders, SetTimer(f"window {memory.windows}", cut_s)]

    def budget(self, site: str) -> int:
        """E: the steps that fit between the predicted end of the wait and the cut."""
        section, speed = self.section, self.memory.step_s.get(site)
        if speed is None:
            return section.warm_steps
        room_s = max(0.5, section.window_s - self.memory.wait_s[site] - section.safety_s)
        return max(int(room_s // speed), section.warm_steps)

    def state(self) -> dict[str, Any]:
        return as_plain(self.memory)

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state)

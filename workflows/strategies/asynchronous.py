"""What the strategies share that never wait for all: each site has one order at a time and gets the next at once.

A strategy of this family only says what an update does to the model (``Merge``). With ``late_binding`` a site is
asked for a block first and given the newest model when the block starts; otherwise it is given the model that is
newest when it is asked, which grows older in the queue.

A site that fails several times in a row is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    RequestBlock,
    SiteFailed,
    Stop,
    UpdateArrived,
)
from workflows.strategies.ledger import Ledger, Order, as_plain, from_plain

PATIENCE = 3  # failures in a row after which a site is left out


class Merge(Protocol):
    """How updates become models. ``version`` is that of the newest model."""

    memory: Any  # a dataclass of plain values

    def __call__(self, version: int, sites: int, task: int, order: Order) -> Aggregate | None:
        """The next model, if this update makes one."""


@dataclass
class Memory:
    """What the strategy knows."""

    ledger: Ledger = field(default_factory=Ledger)
    version: int = 0
    requested: list[str] = field(default_factory=list)  # sites whose queue has a request of ours
    held: list[str] = field(default_factory=list)  # sites with a running block that was asked for


class Asynchronous:
    """A campaign without rounds."""

    def __init__(
        self, rounds: int, steps: int, merge: Merge, *, late_binding: bool = False, proximal_mu: float | None = None
    ) -> None:
        self.rounds, self.steps, self.late_binding, self.proximal_mu = rounds, steps, late_binding, proximal_mu
        self.memory, self.merge = Memory(), merge

    def react(self, event: Event) -> list[Action]:
        memory = self.memory
        match event:
            case CampaignStarted():
                memory.ledger.enrol(event.sites)
                return [action for site in memory.ledger.samples for action in self._ask(site, event.time_s)]
            case BlockStarted() if self.late_binding:
                memory.requested = [site for site in memory.requested if site != event.site]
                memory.held.append(event.site)
                return [] if event.site in memory.ledger.busy() else self._ask(event.site, event.time_s)
            case BlockEnded() if event.site in memory.held:
                memory.held.remove(event.site)
                return [] if event.site in memory.ledger.busy() else self._ask(event.site, event.time_s)
            case BlockEnded() if event.site in memory.requested:
                memory.requested.remove(event.site)
                memory.ledger.failed(event.site)
                return [*self._ask(event.site, event.time_s), *self._given_up()]
            case UpdateArrived() | SiteFailed():
                order = memory.ledger.close(event)
                return self._closed(event, order) if order else []
        return []

    def _closed(self, event: UpdateArrived | SiteFailed, order: Order) -> list[Action]:
        memory, actions = self.memory, list[Action]()
        if isinstance(event, UpdateArrived) and event.steps_done > 0:
            made = self.merge(memory.version, len(memory.ledger.samples), event.task, order)
            if made:
                memory.version = made.version
                actions.append(made)
        if memory.version >= self.rounds:
            return [*actions, Stop()]
        return [*actions, *self._ask(event.site, event.time_s), *self._given_up()]

    def _given_up(self) -> list[Action]:
        """The end, once no site is left to be asked."""
        if all(self.memory.ledger.failures.get(site, 0) >= PATIENCE for site in self.memory.ledger.samples):
            return [Stop(f"every site has failed {PATIENCE} times in a row")]
        return []

    def _ask(self, site: str, now_s: float) -> list[Action]:
        memory = self.memory
        if memory.ledger.failures.get(site, 0) >= PATIENCE:
            return []
        if self.late_binding and site not in memory.held:
            if site in memory.requested:
                return []
            memory.requested.append(site)
            return [RequestBlock(site)]
        return [memory.ledger.order(site, memory.version, self.steps, now_s, proximal_mu=self.proximal_mu)]

    def state(self) -> dict[str, Any]:
        return {"sites": as_plain(self.memory), "merge": as_plain(self.merge.memory)}

    def restore(self, state: dict[str, Any]) -> None:
        self.memory = from_plain(Memory, state["sites"])
        self.merge.memory = from_plain(type(self.merge.memory), state["merge"])

"""What all strategies keep in the same way: which orders are out, what each site was asked, and a plain copy of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from workflows.strategies.base import SiteFacts, SiteFailed, Train, UpdateArrived

Kind = TypeVar("Kind")


@lru_cache
def adapter_of(kind: Hashable) -> TypeAdapter[Any]:
    """Built once for each kind: that takes milliseconds."""
    return TypeAdapter(cast(Any, kind))


def as_plain(memory: Any) -> dict[str, Any]:
    """A dataclass as values that JSON holds, equal after a trip through a file."""
    return adapter_of(cast(Hashable, type(memory))).dump_python(memory, mode="json")


def from_plain(kind: type[Kind], state: dict[str, Any]) -> Kind:
    """What ``as_plain`` was given."""
    return adapter_of(cast(Hashable, kind)).validate_python(state)


@dataclass(frozen=True)
class Order:
    """An order that is out."""

    site: str
    version: int
    steps: int
    asked_s: float = 0.0


@dataclass
class Ledger:
    """The sites in the order of the campaign, and the orders they have."""

    samples: dict[str, int] = field(default_factory=dict)
    next_task: int = 0
    out: dict[int, Order] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)  # orders a site was given
    failures: dict[str, int] = field(default_factory=dict)  # in a row

    def enrol(self, sites: Iterable[SiteFacts]) -> None:
        self.samples = {site.name: site.samples for site in sites}

    def order(self, site: str, version: int, steps: int, asked_s: float = 0.0, **details: Any) -> Train:
        """The next order of a site; rounds count per site unless ``details`` give them."""
        task, self.next_task = self.next_task, self.next_task + 1
        self.out[task] = Order(site, version, steps, asked_s)
        self.rounds[site] = self.rounds.get(site, 0) + 1
        return Train(task, site, version, steps=steps, **{"round": self.rounds[site], **details})

    def close(self, event: UpdateArrived | SiteFailed) -> Order | None:
        """The order that has ended; None where it was told before."""
        order = self.out.pop(event.task, None)
        if order is not None:
            if isinstance(event, SiteFailed):
                self.failed(order.site)
            else:
                self.failures[order.site] = 0
                self.samples[order.site] = event.site_samples or self.samples[order.site]
        return order

    def failed(self, site: str) -> None:
        """A site could not be had at all."""
        self.failures[site] = self.failures.get(site, 0) + 1

    def busy(self) -> set[str]:
        return {order.site for order in self.out.values()}


def shares(samples: dict[str, int], sites: Iterable[str], weights: str) -> dict[str, float]:
    """Weights of sites that sum to one: by samples or equal."""
    raw = {site: samples[site] if weights == "samples" else 1 for site in sites}
    total = sum(raw.values())
    return {site: amount / total for site, amount in raw.items()}

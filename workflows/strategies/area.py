"""AREA: the last word of every site counts alike, however often it speaks.

    site sends     y_k(new) - y_k(last)
    server         x <- x + (1 / m) sum of the messages, after every K of them

The messages of a site add up, so that x is always x_0 plus the mean over all m sites of what each has moved so far:
no bias towards fast sites. A site that has not spoken counts with the first model.

Source: Iakovidou, Kim, Asynchronous Federated Stochastic Optimization for Heterogeneous Objectives under Arbitrary
Delays, 2024 (arXiv 2405.10123).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from workflows.strategies.asynchronous import Asynchronous
from workflows.strategies.base import Aggregate, StrategySection
from workflows.strategies.ledger import Order


class AreaSection(StrategySection):
    """``strategy: {name: area}``."""

    name: Literal["area"]
    buffer: PositiveInt = 1
    rho: NonNegativeFloat | None = None  # proximal term; None: training.proximal_mu of the campaign
    late_binding: bool = False

    def strategy(self, rounds: int, steps: int) -> Asynchronous:
        return Asynchronous(rounds, steps, LastWords(self.buffer), late_binding=self.late_binding, proximal_mu=self.rho)


@dataclass
class Words:
    """What the server last had of each site, and what has come since: site -> task."""

    counted: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    messages: int = 0


class LastWords:
    """The formula above."""

    def __init__(self, buffer: int) -> None:
        self.buffer, self.memory = buffer, Words()

    def __call__(self, version: int, sites: int, task: int, order: Order) -> Aggregate | None:
        words = self.memory
        words.waiting[order.site] = task
        words.messages += 1
        if words.messages < self.buffer:
            return None
        parts = [(new, 1 / sites) for new in words.waiting.values()]
        known = [site for site in words.waiting if site in words.counted]
        parts += [(words.counted[site], -1 / sites) for site in known]
        models = {version: 1.0}
        models[0] = models.get(0, 0.0) - (len(words.waiting) - len(known)) / sites
        self.memory = Words({**words.counted, **words.waiting})
        kept = tuple((number, weight) for number, weight in models.items() if weight)
        return Aggregate(version + 1, version, tuple(parts), kept)

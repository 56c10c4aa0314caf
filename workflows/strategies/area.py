"""AREA: the newest update of every site has the same weight, however often the site sends one.

    site sends     y_k(new) - y_k(last)
    server         x <- x + (1 / m) sum of the messages, after every K of them

The messages of a site add up, so that x is always x_0 plus the mean over all m sites of what each has moved so far:
no bias towards fast sites. A site without an update so far counts with the first model.

Source: Iakovidou, Kim, Asynchronous Federated Stochastic Optimization for Heterogeneous Objectives under Arbitrary
Delays, 2024 (arXiv 2405.10123).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from workflows.strategies.asynchronous import Asynchronous
from workflows.strategies.base import Aggregate, StrategySection
from workflows.strategies.requests import OpenRequest


class AreaSection(StrategySection):
    """``strategy: {name: area}``."""

    name: Literal["area"]
    buffer: PositiveInt = 1
    rho: NonNegativeFloat | None = None  # proximal term; None: training.proximal_mu of the campaign
    late_binding: bool = False

    def strategy(self, rounds: int, steps: int) -> Asynchronous:
        merge = MeanOfNewest(self.buffer)
        return Asynchronous(rounds, steps, merge, late_binding=self.late_binding, proximal_mu=self.rho)


@dataclass
class NewestUpdates:
    """The newest update of each site, counted in the model and not yet counted: site -> task."""

    counted: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    messages: int = 0  # since the last merge


class MeanOfNewest:
    """The merge of the formula above."""

    def __init__(self, buffer: int) -> None:
        self.buffer, self.state = buffer, NewestUpdates()

    def __call__(self, version: int, sites: int, task: int, request: OpenRequest) -> Aggregate | None:
        """Return the next model once the buffer is full, else None."""
        state = self.state
        state.waiting[request.site] = task
        state.messages += 1
        if state.messages < self.buffer:
            return None
        parts = [(new, 1 / sites) for new in state.waiting.values()]
        known = [site for site in state.waiting if site in state.counted]
        parts += [(state.counted[site], -1 / sites) for site in known]
        models = {version: 1.0}
        models[0] = models.get(0, 0.0) - (len(state.waiting) - len(known)) / sites
        self.state = NewestUpdates({**state.counted, **state.waiting})
        kept = tuple((number, weight) for number, weight in models.items() if weight)
        return Aggregate(version + 1, version, tuple(parts), kept)

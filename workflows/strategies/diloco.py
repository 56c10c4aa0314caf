"""DiLoCo: many local steps, then one step of Nesterov's momentum at the server.

    g = x - mean_k(x_k);   v <- mu v + g;   x <- x - rate (g + mu v)

Source: Douillard et al., DiLoCo, 2023 (arXiv 2311.08105); defaults of OpenDiLoCo. The published number of local
steps is 500: set ``training.steps``; ``training.keep_optimizer`` keeps the inner moments, as published.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from workflows.strategies.base import ServerRule, Weights
from workflows.strategies.fedavg import FedAvg, SynchronousSection


class DiLoCoSection(SynchronousSection):
    """``strategy: {name: diloco}``."""

    name: Literal["diloco"]
    weights: Weights = "equal"
    rate: PositiveFloat = 0.7
    mu: float = Field(default=0.9, ge=0, lt=1)

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, server=ServerRule("nesterov", self.rate, self.mu))

"""FedAvgM: FedAvg with momentum at the server.

    D = sum_k p_k (x_k - x);   v <- beta v + D;   x <- x + rate v

Source: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019 (arXiv 1909.06335).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from workflows.strategies.base import ServerRule
from workflows.strategies.fedavg import FedAvg, SynchronousSection


class FedAvgMSection(SynchronousSection):
    """``strategy: {name: fedavgm}``."""

    name: Literal["fedavgm"]
    beta: float = Field(default=0.9, ge=0, lt=1)
    rate: PositiveFloat = 1.0

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, server=ServerRule("momentum", self.rate, self.beta))

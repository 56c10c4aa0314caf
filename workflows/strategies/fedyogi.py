"""FedYogi: FedAvg with Yogi at the server.

    D = sum_k p_k (x_k - x);   m <- b1 m + (1 - b1) D;   v <- v - (1 - b2) D^2 sign(v - D^2)
    x <- x + rate m / (sqrt(v) + tau),   m starts at 0, v at tau^2, no bias correction

Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (arXiv 2003.00295); defaults of APPFL.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from workflows.strategies.base import ServerRule
from workflows.strategies.fedavg import FedAvg, SynchronousSection


class FedYogiSection(SynchronousSection):
    """``strategy: {name: fedyogi}``."""

    name: Literal["fedyogi"]
    rate: PositiveFloat = 0.01
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: PositiveFloat = 1e-3

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, server=ServerRule("yogi", self.rate, self.beta1, self.beta2, self.tau))

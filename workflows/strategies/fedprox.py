"""FedProx: FedAvg with a proximal term that keeps sites near the model they started from.

    local loss + mu/2 ||x - x_global||^2

The norm is squared: its gradient is mu (x - x_global).

Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020 (arXiv 1812.06127).
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from workflows.strategies.fedavg import FedAvg, SynchronousSection


class FedProxSection(SynchronousSection):
    """``strategy: {name: fedprox}``."""

    name: Literal["fedprox"]
    mu: PositiveFloat = 0.01

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, proximal_mu=self.mu)

"""SCAFFOLD: local gradients corrected by the gradients of the other sites.

    local step     y <- y - eta (g - c_k + c)
    option II      c_k' = c_k - c + (x - y) / (K eta),   c <- c + |S|/N mean_S(c_k' - c_k)
    server         x <- x + mean_S(y - x)

With plain SGD, (x - y) / (K eta) is the mean of the corrected gradients, so that c_k' is the mean of the plain
gradients of site k's last task, G_k, and c is their sum over all N sites divided by N, zero for a site without one.
The correction c - c_k is therefore a sum of factors on the G of earlier tasks (``Train.correction``): sites keep a
gradient per task, the server forms the sum. Not defined where the local optimiser is not plain SGD (AdamW).

Source: Karimireddy et al., SCAFFOLD, ICML 2020 (arXiv 1910.06378).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from workflows.strategies.base import Weights
from workflows.strategies.fedavg import FedAvg, SynchronousSection


class ScaffoldSection(SynchronousSection):
    """``strategy: {name: scaffold}``."""

    name: Literal["scaffold"]
    weights: Weights = "equal"

    @model_validator(mode="after")
    def _only_a_mean(self) -> Self:
        if self.rule != "mean":
            raise ValueError("rule: scaffold is a mean; a robust rule needs another strategy, for example fedavg")
        return self

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, corrected=True)

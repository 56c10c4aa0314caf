"""FedNova: a mean of directions, so that a site with more steps has no more weight.

    x <- x + tau_eff sum_k p_k (x_k - x) / tau_k,   tau_eff = sum_k p_k tau_k

``tau_k`` is the number of steps site k has done, as for plain SGD; AdamW bounds each step alike, so that the number
of steps is its normaliser too. Unlike there, as tau_k is the site's own word, one below a tenth of the median of the
other sites counts as that, tau_eff / tau_k as at most 3, and of several sites none has more than four fifths of the
sum of the weights p_k tau_eff / tau_k.

Source: Wang et al., Tackling the Objective Inconsistency Problem, NeurIPS 2020 (arXiv 2007.07481).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from workflows.strategies.fedavg import FedAvg, SynchronousSection


class FedNovaSection(SynchronousSection):
    """``strategy: {name: fednova}``."""

    name: Literal["fednova"]

    @model_validator(mode="after")
    def _only_a_mean(self) -> Self:
        if self.rule != "mean":
            raise ValueError("rule: fednova is a mean; a robust rule needs another strategy, for example fedavg")
        return self

    def strategy(self, rounds: int, steps: int) -> FedAvg:
        return self.rounds_of(rounds, steps, normalise=True)

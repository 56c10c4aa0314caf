"""FedNova: a mean of directions, so that a site with more steps has no more weight.

    x <- x + tau_eff sum_k p_k (x_k - x) / tau_k,   tau_eff = sum_k p_k tau_k

``tau_k`` is the number of steps site k has done, as for plain SGD; AdamW bounds each step alike, so that the number
of steps is its normaliser too. A tau_k below a tenth of the round's median counts as that: it is the site's own word,
and a change divided by the one step that is claimed for it would be the whole mean.

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

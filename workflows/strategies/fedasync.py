"""FedAsync: each update is mixed into the model as it arrives.

    x <- (1 - a_s) x + a_s x_k,   a_s = alpha S(s)

S(s) is constant, polynomial (s+1)^-a, or hinge. A proximal term rho keeps sites near the model they started from.
``per_site`` divides alpha by the number of sites, as APPFL does: with four sites and alpha 0.9 a fresh update then
has the weight 0.225.

Source: Xie, Koyejo, Gupta, Asynchronous Federated Optimization, 2019 (arXiv 1903.03934); defaults of APPFL.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from workflows.strategies.asynchronous import Asynchronous
from workflows.strategies.base import Aggregate, StrategySection
from workflows.strategies.requests import OpenRequest
from workflows.strategies.staleness import Staleness


class FedAsyncSection(StrategySection):
    """``strategy: {name: fedasync}``."""

    name: Literal["fedasync"]
    alpha: float = Field(default=0.9, gt=0, le=1)
    staleness: Staleness = Staleness(kind="polynomial", a=0.5)
    per_site: bool = False
    rho: NonNegativeFloat | None = None  # None: training.proximal_mu of the campaign
    late_binding: bool = False

    def strategy(self, rounds: int, steps: int) -> Asynchronous:
        return Asynchronous(rounds, steps, Mixture(self), late_binding=self.late_binding, proximal_mu=self.rho)


class Mixture:
    """The merge of the formula above."""

    def __init__(self, section: FedAsyncSection) -> None:
        self.section = section

    def __call__(self, version: int, sites: int, task: int, request: OpenRequest) -> Aggregate:
        """Return the next model; every update makes one."""
        alpha = self.section.alpha / (sites if self.section.per_site else 1)
        weight = alpha * self.section.staleness.weight(version - request.version)
        return Aggregate(version + 1, version, ((task, weight),), ((version, 1 - weight),))

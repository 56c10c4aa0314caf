"""FedBuff: the differences of K updates are collected, then the server makes one step.

    x <- x + eta / K sum_k S(s_k) (x_k - x_b(k)),   S(s) = (1 + s)^-1/2

``b(k)`` is the version that update k started from. With ``momentum`` the step goes through momentum at the server.

Source: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022 (arXiv 2106.06639).
APPFL divides by the number of sites instead of K and takes differences to the present model; the formula is
followed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from workflows.strategies.asynchronous import Asynchronous
from workflows.strategies.base import Aggregate, ServerRule, StrategySection
from workflows.strategies.requests import OpenRequest
from workflows.strategies.staleness import Staleness


class FedBuffSection(StrategySection):
    """``strategy: {name: fedbuff}``."""

    name: Literal["fedbuff"]
    buffer: PositiveInt = 3
    rate: PositiveFloat = 1.0
    momentum: float = Field(default=0.0, ge=0, lt=1)
    staleness: Staleness = Staleness(kind="polynomial", a=0.5)
    rho: NonNegativeFloat | None = None  # proximal term; None: training.proximal_mu of the campaign
    late_binding: bool = False

    def strategy(self, rounds: int, steps: int) -> Asynchronous:
        return Asynchronous(rounds, steps, Buffer(self), late_binding=self.late_binding, proximal_mu=self.rho)


@dataclass
class BufferedUpdates:
    """Updates in the buffer: task, version it started from, staleness factor."""

    updates: list[tuple[int, int, float]] = field(default_factory=list)


class Buffer:
    """The merge of the formula above."""

    def __init__(self, section: FedBuffSection) -> None:
        self.section, self.state = section, BufferedUpdates()

    def __call__(self, version: int, _sites: int, task: int, request: OpenRequest) -> Aggregate | None:
        """Return the next model once the buffer is full, else None."""
        factor = self.section.staleness.weight(version - request.version)
        self.state.updates.append((task, request.version, factor))
        if len(self.state.updates) < self.section.buffer:
            return None
        updates, self.state = self.state.updates, BufferedUpdates()
        rule = ServerRule("momentum", self.section.rate, self.section.momentum) if self.section.momentum else None
        return step_of_differences(version, updates, (1.0 if rule else self.section.rate) / len(updates), rule)


def step_of_differences(
    version: int, updates: list[tuple[int, int, float]], rate: float, server: ServerRule | None = None
) -> Aggregate:
    """Return ``x + rate sum_k f_k (x_k - x_b(k))``.

    Args:
        version: of the newest model x.
        updates: of each update its task, the version b(k) it started from, and its factor f_k.
        rate: of the step.
        server: rule that makes the step, or None for a plain one.
    """
    parts = tuple((task, rate * factor) for task, _, factor in updates)
    models = {version: 1.0}
    for (_, start, _), (_, weight) in zip(updates, parts, strict=True):
        models[start] = models.get(start, 0.0) - weight
    kept = tuple((number, weight) for number, weight in models.items() if weight)
    return Aggregate(version + 1, version, parts, kept, server)

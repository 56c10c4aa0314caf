"""What a virtual campaign leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.studies.simulation.problem import TestScore


@dataclass(frozen=True)
class ModelPoint:
    """The global model at a moment."""

    time_s: float
    version: int
    score: TestScore
    node_hours: float = 0.0  # spent until then


@dataclass
class SiteUsage:
    """What one site has done and cost."""

    steps: int = 0
    tasks: int = 0
    failures: int = 0
    blocks: int = 0
    block_s: float = 0.0  # running blocks, whether they work or not
    train_s: float = 0.0  # of it spent on updates that came back
    wait_s: list[float] = field(default_factory=list)  # of each block in the queue
    losses: list[tuple[float, float]] = field(default_factory=list)  # (time, loss of the site's own model)


@dataclass
class CampaignResult:
    """One campaign; times in virtual seconds."""

    points: list[ModelPoint]
    accounts: dict[str, SiteUsage]
    staleness: list[int]  # in versions, of every update counted
    shares: dict[str, float]  # of the steps in the last model, by the weights they were counted with
    node_hours: float
    wasted_node_hours: float  # idle, starting, killed, or spent on updates that never counted
    ended_s: float
    failure: str | None

    @property
    def steps(self) -> int:
        return sum(account.steps for account in self.accounts.values())

    def first_below(self, loss: float) -> float | None:
        """When the global model first had this loss or less; None: never."""
        return next((point.time_s for point in self.points if point.score.loss <= loss), None)

    def at(self, time_s: float) -> ModelPoint:
        """The newest model at a time."""
        return next(point for point in reversed(self.points) if point.time_s <= time_s)

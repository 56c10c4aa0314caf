"""The result of a simulated campaign: models over time, and the work and cost of each site."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflows.studies.simulation.problem import ModelScore


@dataclass(frozen=True)
class ModelPoint:
    """The global model at a moment."""

    time_s: float
    version: int
    score: ModelScore
    node_hours: float = 0.0  # spent until then


@dataclass
class SiteUsage:
    """Work and cost of one site."""

    steps: int = 0
    tasks: int = 0
    failures: int = 0
    blocks: int = 0
    block_s: float = 0.0  # of running blocks, with or without work
    train_s: float = 0.0  # part of it spent on updates that were returned
    wait_s: list[float] = field(default_factory=list)  # of each block in the queue
    losses: list[tuple[float, float]] = field(default_factory=list)  # (time, loss of the site's own model)


@dataclass
class CampaignResult:
    """Result of one campaign; times in virtual seconds."""

    points: list[ModelPoint]
    usage: dict[str, SiteUsage]
    staleness: list[int]  # in versions, of every counted update
    shares: dict[str, float]  # of the steps in the last model, by the weights they were counted with
    node_hours: float
    wasted_node_hours: float  # idle, starting, killed, or spent on updates that were never counted
    ended_s: float
    failure: str | None

    @property
    def steps(self) -> int:
        """Return the number of local steps at all sites."""
        return sum(usage.steps for usage in self.usage.values())

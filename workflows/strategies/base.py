"""What a strategy is told and what it answers: one brain, driven by the live or by a virtual engine.

A strategy is a plain state machine without threads, clocks, tensors or Parsl. Times are seconds since the
campaign began, as the engine sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class SiteFacts:
    """What a strategy may know of a site before it trains."""

    name: str
    samples: int


@dataclass(frozen=True)
class CampaignStarted:
    """The first event: model version 0 is there, the sites have enrolled."""

    time_s: float
    sites: tuple[SiteFacts, ...]


@dataclass(frozen=True)
class UpdateArrived:
    """A site's update is at the server and has passed the checks."""

    time_s: float
    site: str
    task: int
    task_id: str  # the identity of the work
    steps_done: int
    samples: int
    train_s: float
    wait_s: float  # between the model's arrival at the site and the start of the work: the queue


@dataclass(frozen=True)
class SiteFailed:
    """A site's task has ended for good without an update that counts."""

    time_s: float
    site: str
    task: int
    reason: str


@dataclass(frozen=True)
class TimerFired:
    """A timer that the strategy has set."""

    time_s: float
    name: str


Event = CampaignStarted | UpdateArrived | SiteFailed | TimerFired


@dataclass(frozen=True)
class Train:
    """Ask a site to train a version of the model. ``task`` numbers the orders of a campaign."""

    task: int
    site: str
    version: int
    round: int
    start_step: int


@dataclass(frozen=True)
class Aggregate:
    """Make model ``version`` of updates: task number and weight of each; weights sum to one."""

    version: int
    base: int
    parts: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SetTimer:
    """Wake the strategy at a time (seconds since the campaign began)."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Stop:
    """The campaign is over. ``failure`` says why it could not be finished, if so."""

    failure: str | None = None


Action = Train | Aggregate | SetTimer | Stop


class Strategy(Protocol):
    """A federated algorithm."""

    def react(self, event: Event) -> list[Action]:
        """What to do about an event."""

    def state(self) -> dict[str, Any]:
        """All it knows, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become the strategy that gave this state."""

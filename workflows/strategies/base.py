"""What a strategy is told and what it answers: one brain, driven by the live or by a virtual engine.

A strategy is a plain state machine without threads, clocks, tensors or Parsl. Times are seconds since the
campaign began, as the engine sees them.

Models and updates are named by numbers: a model by its version, an update by the task that made it. A new model is
always an affine combination of stored ones (``Aggregate``), so that a mean, a mixture, a sum of differences and a
memory of absent sites are the same streaming pass at the server.

Blocks (batch jobs) come by themselves where a strategy only asks for training: the engine requests one when work for
a site waits and none is there. A strategy that asks with ``RequestBlock`` is told when the block starts and chooses
the model then, so that the time in the queue makes nothing stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class SiteFacts:
    """What a strategy may know of a site before it trains."""

    name: str
    samples: int  # 0: it could not be asked yet, its first update tells
    max_blocks: int = 1  # batch jobs of ours that the queue takes at once, waiting and running
    walltime_s: float | None = None  # of a block; None: no limit


@dataclass(frozen=True)
class CampaignStarted:
    """The first event: model version 0 is there, the sites have enrolled."""

    time_s: float
    sites: tuple[SiteFacts, ...]


@dataclass(frozen=True)
class BlockStarted:
    """A block runs and can train now; told at least of those that the strategy has asked for."""

    time_s: float
    site: str
    wait_s: float  # in the queue
    ends_s: float | None = None  # when its walltime is over; None: not known


@dataclass(frozen=True)
class BlockEnded:
    """A running block is gone (walltime, idle, preempted, cancelled), or one that was asked for cannot be had."""

    time_s: float
    site: str
    reason: str


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
    site_samples: int = 0  # that the site has, for a mean by samples; 0: as it told when it enrolled


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


Event = CampaignStarted | BlockStarted | BlockEnded | UpdateArrived | SiteFailed | TimerFired


@dataclass(frozen=True)
class RequestBlock:
    """Ask a site's queue for a block. Without effect while ``max_blocks`` of ours wait or run there."""

    site: str


@dataclass(frozen=True)
class ReleaseBlock:
    """Give a site's running block back; work inside is finished first."""

    site: str


@dataclass(frozen=True)
class Train:
    """Ask a site to train a version of the model. ``task`` numbers the orders of a campaign.

    ``round`` seeds the order of the samples: for a site it is never twice the same. The work ends after ``steps``,
    after the step during which ``until_s`` passes, or when the block nears its walltime, whichever is first; the
    update then says how many steps were done. Warm-up and decay of the learning rate follow ``version``, of which
    every strategy makes as many as the campaign has rounds.
    """

    task: int
    site: str
    version: int
    round: int
    steps: int | None = None  # None: the campaign's training.steps
    until_s: float | None = None
    rate_factor: float = 1.0  # on the learning rate
    proximal_mu: float | None = None  # None: the campaign's training.proximal_mu
    correction: tuple[tuple[int, float], ...] = ()  # tasks and factors: joins the gradient, see scaffold.py


@dataclass(frozen=True)
class ServerRule:
    """An optimiser at the server; formulas in apps/artifacts/server_optimizer.py. Its state goes on from ``base``."""

    name: Literal["momentum", "nesterov", "adagrad", "adam", "yogi"]
    rate: float
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0


@dataclass(frozen=True)
class Aggregate:
    """Make model ``version``: the sum of updates (``parts``: task, weight) and models (``models``: version, weight).

    All weights together sum to one; single ones may be negative. A server rule takes ``base`` less that sum as its
    gradient.
    """

    version: int
    base: int
    parts: tuple[tuple[int, float], ...]
    models: tuple[tuple[int, float], ...] = ()
    server: ServerRule | None = None


@dataclass(frozen=True)
class SetTimer:
    """Wake the strategy at a time (seconds since the campaign began)."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Stop:
    """The campaign is over. ``failure`` says why it could not be finished, if so."""

    failure: str | None = None


Action = Train | RequestBlock | ReleaseBlock | Aggregate | SetTimer | Stop


class Strategy(Protocol):
    """A federated algorithm."""

    def react(self, event: Event) -> list[Action]:
        """What to do about an event."""

    def state(self) -> dict[str, Any]:
        """All it knows, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become the strategy that gave this state."""


Weights = Literal["samples", "equal"]


class StrategySection(BaseModel):
    """Settings of one strategy; each gives the strategy it describes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def strategy(self, rounds: int, steps: int) -> Strategy:
        """A fresh strategy.

        Args:
            rounds: versions of the global model after which the campaign ends.
            steps: local steps of one order, where the algorithm does not choose them itself.
        """
        raise NotImplementedError

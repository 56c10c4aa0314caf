"""Events that a strategy receives and actions that it returns; the same for the live and the virtual engine.

A strategy is a plain state machine without threads, clocks, tensors or Parsl. Times are seconds since the
campaign began, as the engine sees them.

Models and updates are named by numbers: a model by its version, an update by the task that made it. A new model is
always an affine combination of stored ones (``Aggregate``), so that a mean, a mixture, a sum of differences and a
memory of absent sites are the same streaming pass at the server.

The engine requests a block (batch job) by itself when training requests wait at a site that has none. A strategy that
requests blocks with ``RequestBlock`` gets an event when the block starts and chooses the model then, so that the time
in the queue makes nothing stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class SiteFacts:
    """Properties of a site that are known before it trains."""

    name: str
    samples: int  # 0: unknown until its first update
    max_blocks: int = 1  # our batch jobs that the queue admits at the same time, waiting and running
    walltime_s: float | None = None  # of a block; None: no limit


@dataclass(frozen=True)
class CampaignStarted:
    """First event of a campaign: model version 0 exists and the sites have enrolled."""

    time_s: float
    sites: tuple[SiteFacts, ...]


@dataclass(frozen=True)
class BlockStarted:
    """A block has started and can train; sent at least for blocks that the strategy has requested."""

    time_s: float
    site: str
    wait_s: float  # in the queue
    ends_s: float | None = None  # end of its walltime; None: unknown


@dataclass(frozen=True)
class BlockEnded:
    """A running block has ended (walltime, idle, preempted, cancelled), or a requested one cannot be had."""

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
    wait_s: float  # from the model's arrival at the site to the start of training: the queue
    site_samples: int = 0  # samples at the site, for a mean by samples; 0: as reported when it enrolled
    norm: float | None = None  # L2 norm of the change; None: not measured


@dataclass(frozen=True)
class SiteFailed:
    """A site's task has ended, after all retries, without a valid update."""

    time_s: float
    site: str
    task: int
    reason: str


@dataclass(frozen=True)
class TimerFired:
    """A timer that the strategy has set has fired."""

    time_s: float
    name: str


Event = CampaignStarted | BlockStarted | BlockEnded | UpdateArrived | SiteFailed | TimerFired


@dataclass(frozen=True)
class RequestBlock:
    """Request a block at a site's queue. No effect while ``max_blocks`` of ours wait or run there."""

    site: str


@dataclass(frozen=True)
class ReleaseBlock:
    """Release a site's running block; work inside is finished first."""

    site: str


@dataclass(frozen=True)
class Train:
    """Request training of a model version at a site. ``task`` numbers the requests of a campaign.

    ``round`` seeds the order of the samples and is unique per site. Training ends after ``steps``,
    after the step during which ``until_s`` passes, or when the block nears its walltime, whichever is first; the
    update then reports how many steps were done. Warm-up and decay of the learning rate follow ``version``, of which
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
    """An optimiser at the server; formulas in apps/artifacts/server_optimizer.py. Its state continues from ``base``."""

    name: Literal["momentum", "nesterov", "adagrad", "adam", "yogi"]
    rate: float
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0


@dataclass(frozen=True)
class RobustRule:
    """A rule that ``bad`` bad updates cannot lead far away; formulas in apps/artifacts/robust.py."""

    name: Literal["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"]
    bad: int = 1


@dataclass(frozen=True)
class Aggregate:
    """Make model ``version``: the sum of updates (``parts``: task, weight) and models (``models``: version, weight).

    All weights together sum to one; single ones may be negative. A server rule takes ``base`` less that sum as its
    gradient. A robust rule takes the place of the sum; then all parts are updates of ``base`` and there are no models.
    """

    version: int
    base: int
    parts: tuple[tuple[int, float], ...]
    models: tuple[tuple[int, float], ...] = ()
    server: ServerRule | None = None
    robust: RobustRule | None = None


@dataclass(frozen=True)
class SetTimer:
    """Request a ``TimerFired`` event at a time (seconds since the campaign began)."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Stop:
    """End the campaign. ``failure`` is the reason why it could not be finished, if so."""

    failure: str | None = None


Action = Train | RequestBlock | ReleaseBlock | Aggregate | SetTimer | Stop


class Strategy(Protocol):
    """A federated algorithm."""

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""


Weights = Literal["samples", "equal"]


class StrategySection(BaseModel):
    """Settings of one strategy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def strategy(self, rounds: int, steps: int) -> Strategy:
        """Return a strategy in its first state, with these settings.

        Args:
            rounds: versions of the global model after which the campaign ends.
            steps: local steps of one request, where the algorithm does not choose them itself.
        """
        raise NotImplementedError

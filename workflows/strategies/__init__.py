"""Federated algorithms, one file each, behind the small interface of ``base.py``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator

from workflows.strategies.area import AreaSection
from workflows.strategies.base import Strategy, StrategySection
from workflows.strategies.diloco import DiLoCoSection
from workflows.strategies.fedadagrad import FedAdagradSection
from workflows.strategies.fedadam import FedAdamSection
from workflows.strategies.fedasync import FedAsyncSection
from workflows.strategies.fedavg import FedAvgSection, SynchronousSection
from workflows.strategies.fedavgm import FedAvgMSection
from workflows.strategies.fedbuff import FedBuffSection
from workflows.strategies.fedcompass import FedCompassSection
from workflows.strategies.fedecho import FedEchoSection
from workflows.strategies.fednova import FedNovaSection
from workflows.strategies.fedprox import FedProxSection
from workflows.strategies.fedqueue import FedQueueSection
from workflows.strategies.fedyogi import FedYogiSection
from workflows.strategies.scaffold import ScaffoldSection

SECTIONS: dict[str, type[StrategySection]] = {
    "fedavg": FedAvgSection,
    "fedprox": FedProxSection,
    "fedavgm": FedAvgMSection,
    "fedadagrad": FedAdagradSection,
    "fedadam": FedAdamSection,
    "fedyogi": FedYogiSection,
    "fednova": FedNovaSection,
    "scaffold": ScaffoldSection,
    "diloco": DiLoCoSection,
    "fedasync": FedAsyncSection,
    "fedbuff": FedBuffSection,
    "fedecho": FedEchoSection,
    "area": AreaSection,
    "fedcompass": FedCompassSection,
    "fedqueue": FedQueueSection,
}


def _named(section: Any) -> Any:
    """Add the default name: a section without one is FedAvg, a name alone means that strategy's defaults."""
    if isinstance(section, str):
        return {"name": section}
    return {"name": "fedavg", **section} if isinstance(section, dict) else section


AnySection = Annotated[
    FedAvgSection
    | FedProxSection
    | FedAvgMSection
    | FedAdagradSection
    | FedAdamSection
    | FedYogiSection
    | FedNovaSection
    | ScaffoldSection
    | DiLoCoSection
    | FedAsyncSection
    | FedBuffSection
    | AreaSection
    | FedCompassSection
    | FedQueueSection
    | FedEchoSection,
    Discriminator("name"),
    BeforeValidator(_named),
]


def has_rounds(name: str) -> bool:
    """Return True if a strategy works in rounds; the others make model versions from updates as they arrive."""
    return issubclass(SECTIONS.get(name, FedAvgSection), SynchronousSection)


def is_plain_mean(section: StrategySection) -> bool:
    """Return True if each model is a mean of updates of the one before, and nothing else."""
    return isinstance(section, FedAvgSection | FedProxSection)


def make_strategy(section: StrategySection, rounds: int, steps: int) -> Strategy:
    """Return the strategy of a campaign.

    Args:
        section: the campaign's strategy settings.
        rounds: versions of the global model after which the campaign ends.
        steps: local steps of one request.
    """
    return section.strategy(rounds, steps)

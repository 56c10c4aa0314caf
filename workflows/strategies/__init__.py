"""Federated algorithms, one file each, behind one small interface (``base.py``)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from workflows.strategies.base import Strategy


class StrategySection(BaseModel):
    """The campaign's choice of algorithm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["fedavg"] = "fedavg"
    weights: Literal["samples", "equal"] = "samples"
    quorum: PositiveInt | None = None  # updates a round needs; None: every site's


def make_strategy(section: StrategySection, rounds: int, steps: int) -> Strategy:
    from workflows.strategies.fedavg import FedAvg

    return FedAvg(rounds, steps, section.weights, section.quorum)

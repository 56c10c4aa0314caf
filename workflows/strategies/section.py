"""The part of a campaign file that a strategy has for itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from workflows.strategies.base import Strategy

Weights = Literal["samples", "equal"]


class Section(BaseModel):
    """Settings of one strategy; each gives the strategy it describes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def strategy(self, rounds: int, steps: int) -> Strategy:
        """A fresh strategy.

        Args:
            rounds: versions of the global model after which the campaign ends.
            steps: local steps of one order, where the algorithm does not choose them itself.
        """
        raise NotImplementedError

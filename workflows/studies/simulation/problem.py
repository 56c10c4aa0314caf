"""What the sites of the virtual engine train: one question, answered by real training or by a cost model.

A model is one flat vector, so that a combination of models is a sum of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TestScore:
    """Of a model on the common test set; losses in nats."""

    loss: float
    accuracy: float
    task_losses: tuple[float, ...]  # a task, or a class, that some site may be alone to hold


@dataclass(frozen=True)
class LocalWork:
    """What one order asks of a site."""

    site: int
    round: int
    steps: int
    rate_factor: float = 1.0
    proximal_mu: float = 0.0


class Problem(Protocol):
    """A learning problem over sites."""

    samples: tuple[int, ...]  # of each site
    nbytes: float  # of the model whose transfer is accounted for
    rate: float  # the learning rate of a local step

    def first(self) -> np.ndarray:
        """Model version 0."""

    def train(self, model: np.ndarray, work: LocalWork, correction: np.ndarray | None = None) -> np.ndarray:
        """The site's model after the work; ``correction`` joins every gradient."""

    def score(self, model: np.ndarray) -> TestScore:
        """How good a model is."""

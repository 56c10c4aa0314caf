"""Interface of the learning problems that the sites of the virtual engine train.

A model is one flat vector, so that a combination of models is a sum of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModelScore:
    """Score of a model on the common test set; losses in nats."""

    loss: float
    accuracy: float
    task_losses: tuple[float, ...]  # of each task or class; a single site may hold all of its data


@dataclass(frozen=True)
class LocalWork:
    """The training that one request asks of a site."""

    site: int
    round: int
    steps: int
    rate_factor: float = 1.0
    proximal_mu: float = 0.0


class Problem(Protocol):
    """A learning problem over sites."""

    samples: tuple[int, ...]  # of each site
    nbytes: float  # of the model, for the duration of its transfers
    rate: float  # the learning rate of a local step

    def first(self) -> np.ndarray:
        """Return model version 0."""

    def train(self, model: np.ndarray, work: LocalWork, correction: np.ndarray | None = None) -> np.ndarray:
        """Return the site's model after the work; ``correction`` is added to every gradient."""

    def score(self, model: np.ndarray) -> ModelScore:
        """Return the score of a model on the test set."""

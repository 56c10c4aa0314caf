"""A problem without training, for thousands of sites: what a model has learned is counted, not computed.

The vector holds for every site the useful steps in the model. A step moves the site's own entry by what is left of
it and lets the others fade a little (forgetting); the loss of a site's task falls exponentially with its entry. The
same sums of models and updates act on it as on weights, so a strategy cannot tell the difference; the numbers say
something about scale and queues and nothing about learning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.studies.simulation.problem import LocalWork, TestScore

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CostModel:
    """So many sites of equal tasks."""

    sites: int
    first_loss: float = 2.3
    last_loss: float = 0.1
    steps_to_learn: float = 200.0  # after which a site's task alone has lost all but 1/e of what it can
    forgetting: float = 0.1  # share of that pace at which the others fade
    nbytes: float = 13.5e9
    rate: float = 1.0

    @property
    def samples(self) -> tuple[int, ...]:
        return (1,) * self.sites

    def first(self) -> np.ndarray:
        import numpy as np

        return np.zeros(self.sites)

    def train(self, model: np.ndarray, work: LocalWork, correction: np.ndarray | None = None) -> np.ndarray:
        pace = work.steps * work.rate_factor / self.steps_to_learn
        learned = model * (1 - min(1.0, self.forgetting * pace))
        learned[work.site] = model[work.site] + pace
        return learned

    def score(self, model: np.ndarray) -> TestScore:
        import numpy as np

        # the mean over sites spreads one site's pace over all of them: hence the factor
        losses = self.last_loss + (self.first_loss - self.last_loss) * np.exp(-np.clip(model * self.sites, -2, 50))
        return TestScore(float(losses.mean()), float((losses < 1).mean()), tuple(losses.tolist()))

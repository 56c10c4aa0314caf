"""Weight of an update by the age of the model that it started from.

Staleness s is the number of versions made since then. Formulas: Xie et al., arXiv 1903.03934 (constant, polynomial,
hinge); FedQueue, arXiv 2605.02125 (harmonic, exponential).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat


class Staleness(BaseModel):
    """Settings of a decay with value 1 at s = 0.

    constant 1; polynomial (s+1)^-a; hinge 1 up to b, then 1/(a (s-b) + 1); harmonic 1/(1 + a s);
    exponential exp(-a s).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["constant", "polynomial", "hinge", "harmonic", "exponential"] = "polynomial"
    a: PositiveFloat = 0.5
    b: NonNegativeFloat = 4.0

    def weight(self, staleness: int) -> float:
        """Return the factor, in (0, 1]; ValueError for a negative staleness."""
        if staleness < 0:
            raise ValueError(f"an update cannot be {-staleness} versions ahead of the model")
        match self.kind:
            case "constant":
                return 1.0
            case "polynomial":
                return (staleness + 1) ** -self.a
            case "hinge":
                return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)
            case "harmonic":
                return 1 / (1 + self.a * staleness)
            case "exponential":
                return math.exp(-self.a * staleness)

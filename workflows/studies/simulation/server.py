"""The server of the virtual engine: the sums and rules of ``apps/artifacts`` on vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.strategies.base import Aggregate, ServerRule

if TYPE_CHECKING:
    import numpy as np

Moments = dict[str, "np.ndarray"]


def combined(action: Aggregate, models: dict[int, np.ndarray], updates: dict[int, np.ndarray]) -> np.ndarray:
    """The affine combination, summed in float64 and kept in the models' type."""
    import numpy as np

    total = np.zeros(models[action.base].shape)
    for version, weight in action.models:
        total += weight * models[version]
    for task, weight in action.parts:
        total += weight * updates[task]
    return total.astype(models[action.base].dtype)


def stepped(base: np.ndarray, target: np.ndarray, rule: ServerRule, before: Moments) -> tuple[np.ndarray, Moments]:
    """One step of a server rule from ``base``, with base - target as gradient, and the moments after it."""
    import numpy as np

    g = (base - target).astype(np.float64)
    m, v = before.get("m", np.zeros_like(g)), before.get("v", np.full_like(g, rule.tau**2))
    b1, b2 = rule.beta1, rule.beta2
    if rule.name == "nesterov":
        m = b1 * m + g
        return (base - rule.rate * (g + b1 * m)).astype(base.dtype), {"m": m}
    if rule.name == "momentum":
        m = b1 * m - g
        return (base + rule.rate * m).astype(base.dtype), {"m": m}
    m, square = b1 * m - (1 - b1) * g, g * g
    if rule.name == "adagrad":
        v = v + square
    elif rule.name == "adam":
        v = b2 * v + (1 - b2) * square
    else:
        v = v - (1 - b2) * square * np.sign(v - square)
    return (base + rule.rate * m / (np.sqrt(v) + rule.tau)).astype(base.dtype), {"m": m, "v": v}

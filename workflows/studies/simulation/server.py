"""The server of the virtual engine: the aggregation and the server rules of ``apps/artifacts``, on NumPy vectors."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from apps.artifacts.robust import COORDINATE_RULES, RobustSpec, coefficients, middle
from apps.artifacts.server_optimizer import MOMENTS, ServerRuleSpec, change, first_moment, second_moment
from workflows.strategies.base import Aggregate, ServerRule

if TYPE_CHECKING:
    import numpy as np

Moments = dict[str, "np.ndarray"]


def combined(action: Aggregate, models: dict[int, np.ndarray], updates: dict[int, np.ndarray]) -> np.ndarray:
    """Return the affine combination of an action, summed in float64, in the models' type."""
    import numpy as np

    if action.robust:
        return robust_mean(action, models[action.base], updates)
    total = np.zeros(models[action.base].shape)
    for version, weight in action.models:
        total += weight * models[version]
    for task, weight in action.parts:
        total += weight * updates[task]
    return total.astype(models[action.base].dtype)


def robust_mean(action: Aggregate, base: np.ndarray, updates: dict[int, np.ndarray]) -> np.ndarray:
    """Return the robust combination of an action, in the base's type."""
    import numpy as np

    assert action.robust is not None
    spec = cast(RobustSpec, asdict(action.robust))
    changes = np.stack([updates[task] for task, _ in action.parts]).astype(np.float64) - base
    if spec["name"] in COORDINATE_RULES:
        found = middle(np.sort(changes, axis=0), spec)
    else:
        found = np.asarray(coefficients((changes @ changes.T).tolist(), spec)) @ changes
    return (base + found).astype(base.dtype)


def stepped(base: np.ndarray, target: np.ndarray, rule: ServerRule, before: Moments) -> tuple[np.ndarray, Moments]:
    """Return the model after one step of a server rule, with ``base - target`` as gradient, and the new moments."""
    import numpy as np

    spec = cast(ServerRuleSpec, asdict(rule))
    g = (base - target).astype(np.float64)
    moments: Moments = {}
    for letter in MOMENTS[rule.name]:
        old = before.get(letter, np.full_like(g, rule.tau**2 if letter == "v" else 0.0))
        moments[letter] = (first_moment if letter == "m" else second_moment)(old, g, spec)
    return (base + change(g, moments["m"], moments.get("v"), spec)).astype(base.dtype), moments

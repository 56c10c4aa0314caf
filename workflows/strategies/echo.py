"""The merge of FedEcho as an affine combination of stored updates and models; formula and reasons in fedecho.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflows.strategies.base import Aggregate, ServerRule

MAX_FACTOR = 3.0  # largest factor on partial work; more would be mostly noise


@dataclass
class EchoUpdate:
    """An update of a site, with the model that it started from."""

    task: int
    base: int  # the version it started from
    steps: int


def echoed(
    version: int,
    base: int,
    contributions: Iterable[tuple[float, Sequence[EchoUpdate]]],
    unit: float,
    kappa: float,
    rule: ServerRule,
) -> Aggregate:
    """Return ``x + sum_j q_j (1/W sum_w (U / K_w) (y_w - b_w) - kappa (x - mean b_w))`` as target of a server rule.

    Args:
        version: of the new model.
        base: x, the newest model.
        contributions: of each site its share q and the updates that count.
        unit: U, the number of steps that a change is scaled to.
        kappa: contraction of U steps.
        rule: server optimiser.
    """
    models, parts = {base: 1.0}, list[tuple[int, float]]()
    for share, updates in contributions:
        models[base] -= kappa * share
        for update in updates:
            part, factor = share / len(updates), min(MAX_FACTOR, unit / update.steps)
            parts.append((update.task, part * factor))
            models[update.base] = models.get(update.base, 0.0) - part * (factor - kappa)
    return Aggregate(version, base, tuple(parts), tuple((v, weight) for v, weight in models.items() if weight), rule)

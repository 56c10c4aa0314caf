"""The merge of FedEcho as an affine combination of stored updates and models; formula and reasons in fedecho.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflows.strategies.base import Aggregate, ServerRule
from workflows.strategies.requests import LARGEST_FACTOR, bounded


@dataclass
class EchoUpdate:
    """An update of a site, with the model that it started from."""

    task: int
    base: int  # the version it started from
    steps: int


def echoed(
    version: int,
    base: int,
    contributions: Iterable[tuple[str, float, Sequence[EchoUpdate]]],
    unit: float,
    kappa: float,
    rule: ServerRule,
) -> Aggregate:
    """Return ``x + sum_j q_j (1/W sum_w (U / K_w) (y_w - b_w) - kappa (x - mean b_w))`` as target of a server rule.

    The steps are a site's own word: none has more than four fifths of the sum of the weights of the changes.

    Args:
        version: of the new model.
        base: x, the newest model.
        contributions: of each site its name, its share q and the updates that count.
        unit: U, the number of steps that a change is scaled to.
        kappa: contraction of U steps.
        rule: server optimiser.
    """
    models, parts, sites = {base: 1.0}, list[tuple[int, float]](), list(contributions)
    factors = {site: [min(LARGEST_FACTOR, unit / update.steps) for update in own] for site, _, own in sites}
    told = {site: share * sum(factors[site]) / len(own) for site, share, own in sites}
    counted = bounded(told)
    for site, share, updates in sites:
        models[base] -= kappa * share
        part, lowered = share / len(updates), counted[site] / told[site] if counted[site] < told[site] else 1.0
        for update, told_factor in zip(updates, factors[site], strict=True):
            factor = told_factor * lowered
            parts.append((update.task, part * factor))
            models[update.base] = models.get(update.base, 0.0) - part * (factor - kappa)
    return Aggregate(version, base, tuple(parts), tuple((v, weight) for v, weight in models.items() if weight), rule)

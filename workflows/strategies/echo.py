"""The merge of FedEcho as an affine combination of stored updates and models; formula and reasons in fedecho.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflows.strategies.base import Aggregate, ServerRule

MOST_FACTOR = 3.0  # partial work counts at most so many times: it would be mostly noise


@dataclass
class Word:
    """An update of a site."""

    task: int
    base: int  # the version it started from
    steps: int


def echoed(
    version: int, base: int, heard: Iterable[tuple[float, Sequence[Word]]], unit: float, kappa: float, rule: ServerRule
) -> Aggregate:
    """``x + sum_j q_j (1/W sum_w (U / K_w) (y_w - b_w) - kappa (x - mean b_w))`` as what a server rule aims at.

    Args:
        version: to be made.
        base: x, the newest model.
        heard: of each site its share q and the words that count.
        unit: U, the steps that a change is scaled to.
        kappa: of so many steps.
        rule: of the server.
    """
    models, parts = {base: 1.0}, list[tuple[int, float]]()
    for share, words in heard:
        models[base] -= kappa * share
        for word in words:
            part, factor = share / len(words), min(MOST_FACTOR, unit / word.steps)
            parts.append((word.task, part * factor))
            models[word.base] = models.get(word.base, 0.0) - part * (factor - kappa)
    return Aggregate(version, base, tuple(parts), tuple((v, weight) for v, weight in models.items() if weight), rule)

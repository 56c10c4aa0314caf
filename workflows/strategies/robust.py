"""What a robust rule needs of a campaign; the rules themselves are in apps/artifacts/robust.py."""

from __future__ import annotations

from typing import Literal

from workflows.console.units import plural

Rule = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median"]
MARGIN = {"krum": 3, "multi_krum": 3}  # updates beyond twice the bad ones; 2 for the other rules


def misfit(rule: Rule, bad: int, fewest: int, method: str | None) -> str | None:
    """Return why a robust rule does not fit a campaign, or None.

    Args:
        rule: of the strategy.
        bad: updates that may be bad.
        fewest: updates that a round may have.
        method: of the adapters; None without.
    """
    if rule == "mean":
        return None
    needed = 2 * bad + MARGIN.get(rule, 2)
    if fewest < needed:
        return (
            f"strategy.rule: {rule} with {plural(bad, 'bad site')} needs {needed} updates, a round may have {fewest}"
            " (sites, strategy.participants, strategy.quorum)"
        )
    if method not in (None, "ffa"):
        return (
            f"strategy.rule: {rule} of the factors of {method} says nothing of their product; use"
            " 'model.adapter.method: ffa', or train all parameters"
        )
    return None

"""Comparison of an aggregation that is submitted again with the one in the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.base.errors import CrossfedError


def check_aggregation(
    recorded: Mapping[str, Any],
    weights: Mapping[str, float],
    updates: Sequence[Mapping[str, Any]],
    models: Mapping[int, float],
) -> None:
    """Check that a model which the journal has is computed again from the same parts.

    Args:
        recorded: the ``aggregated`` record of the version.
        weights: of each site's updates, as asked for now.
        updates: the updates asked for now, as the journal keeps them.
        models: weights of earlier versions of the model, as asked for now.

    Raises:
        CrossfedError: something differs; the message has the version, and the recorded and the asked values.
    """
    asked = {"weights": dict(weights), "updates": [dict(update) for update in updates], "models": _by_text(models)}
    known = {**recorded, "models": _by_text(recorded.get("models") or {})}
    for key, value in asked.items():
        if known.get(key) != value:
            raise CrossfedError(
                f"version {recorded['version']} of the model was aggregated with the {key} {known.get(key)},"
                f" now {value} are asked for",
                round=recorded["version"],
                remedy="Resume with the code that began this run, or start a new run",
            )


def _by_text(models: Mapping[Any, float]) -> dict[str, float]:
    """Return the weights by version as JSON writes it."""
    return {str(version): weight for version, weight in models.items()}

"""Patience with an endpoint that has worked before: a child that was killed is taken for alive for some heartbeats.

The agent says so in words that another version may change; what it has accepted before is not the values' fault.
"""

from __future__ import annotations

from workflows.globus.compute.calls import CallTarget
from workflows.globus.compute.failures import EndpointNotReady, ValuesRefused

PATIENCE_S = 180.0  # three heartbeats of 30 s, and the start of a child


class Patience:
    """Which endpoints have accepted calls with which values, and since when they refuse them."""

    def __init__(self) -> None:
        self._refused_at: dict[str, float | None] = {}

    def accepted(self, target: CallTarget) -> None:
        """Take note that a call was accepted."""
        self._refused_at[_key(target)] = None

    def lasts(self, target: CallTarget, error: Exception, now: float) -> bool:
        """Return True if a refusal is to be waited for: it says so, or the endpoint has accepted such calls before."""
        key = _key(target)
        if isinstance(error, EndpointNotReady):
            return True
        if not isinstance(error, ValuesRefused) or key not in self._refused_at:
            return False
        since = self._refused_at[key]
        if since is None:
            since = self._refused_at[key] = now
        return now - since < PATIENCE_S


def _key(target: CallTarget) -> str:
    return f"{target.endpoint} {sorted(target.config.items())}"

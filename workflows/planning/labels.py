"""Labels of the executors, and facts that planning and runtime share."""

from __future__ import annotations

from apps.base.errors import place_text

SERVER, EVALUATOR, TRANSFERS = "server", "evaluator", "transfers"
SERVER_BLOCK = "server-block"  # computes for the server in a block of its own, while "server" stages on this host
KEYS = {SERVER: "server.site", SERVER_BLOCK: "server.site", EVALUATOR: "evaluation.site"}
LONGEST_DRAIN_S = 300


def shown_name(label: str) -> str:
    """Return the name of a site, or of the server's own work, for people."""
    return place_text(label).removeprefix("site ")


def key_of(label: str) -> str:
    """Return the key of the campaign that describes an executor's machine."""
    return KEYS.get(label, f"sites.{label}")

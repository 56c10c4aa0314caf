"""Labels of the executors, and facts that planning and runtime share."""

from __future__ import annotations

SERVER, EVALUATOR, TRANSFERS = "server", "evaluator", "transfers"
LONGEST_DRAIN_S = 300

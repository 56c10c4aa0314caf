"""Labels of the executors, and facts that planning and runtime share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


SERVER, EVALUATOR, TRANSFERS = "server", "evaluator", "transfers"


LONGEST_DRAIN_S = 300


BLOCK_END_VARIABLE = "CROSSFED_BLOCK_END"

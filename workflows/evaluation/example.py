"""A question from a campaign's own test data, to try a finished model with."""

from __future__ import annotations

import shlex

from apps.evaluation.losses import EvaluationWork
from data.records import iter_records


def example_question(work: EvaluationWork) -> str:
    """Return the first question of a campaign's test data, quoted for the shell."""
    data = work["data"]
    record = next(iter_records(data["source"], work["split"], data["tasks"], 1), None)
    return shlex.quote(record["input"]) if record else "QUESTION"

"""Causes of failed trainings, as the journal has them: some make a resume useless."""

from __future__ import annotations

from apps.base.errors import LossNotFinite, UserMistake
from workflows.records.journal import Journal

NOT_FINITE, MISTAKE = "loss not finite", "mistake"  # in the field ``cause`` of a record


def cause_of(error: BaseException) -> dict[str, str]:
    """Return the field ``cause`` for the record of an error; empty where a resume may succeed."""
    if isinstance(error, LossNotFinite):
        return {"cause": NOT_FINITE}
    return {"cause": MISTAKE} if isinstance(error, UserMistake) else {}


def common_cause(journal: Journal) -> str | None:
    """Return the cause that all trainings share which failed last under this driver, if there is one.

    Args:
        journal: of a run that has ended because trainings failed.

    Returns:
        ``NOT_FINITE``, ``MISTAKE``, or None: at least one of them failed for a reason that may pass.
    """
    begun = max((record["seq"] for record in journal.events("driver_started")), default=0)
    failed = [
        record
        for record in journal.events("task_failed", "update_refused", "update_put_aside")
        if record["seq"] > begun and record.get("app") == "local_train"
    ]
    last = max((record["round"] for record in failed), default=0)
    causes = {record.get("cause") for record in failed if record["round"] == last}
    return causes.pop() if len(causes) == 1 else None

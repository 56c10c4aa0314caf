"""A training as a job of ranks."""

from __future__ import annotations

from dataclasses import asdict

from apps.artifacts.manifests import Manifest
from apps.base.errors import RanksLost
from apps.base.files import inside
from apps.base.stop import StopRequest
from apps.ranks.processes import RankJob, RankPlan, run_as_ranks
from apps.training.task import Task, found_manifest


def train_as_ranks(task: Task, stop: StopRequest, verify_s: float) -> Manifest:
    """Train on the ranks of this worker.

    Args:
        task: to be trained.
        stop: a request to stop, which is passed on to the ranks.
        verify_s: seconds that the verification of its base model took.

    Raises:
        CrossfedError: see ``run_as_ranks``.
    """
    logs = inside(task.root, "logs", f"round-{task.place['round']:04d}")
    job = RankJob(kind="train", place=task.place, logs=str(logs), work={"task": asdict(task), "verify_s": verify_s})
    try:
        return run_as_ranks(rank_plan(task), job, stop)
    except RanksLost:
        manifest = found_manifest(task)  # a rank that ends after the last step costs nothing
        if manifest is None:
            raise
        return manifest


def rank_plan(task: Task) -> RankPlan:
    """Return the plan of the ranks of a training."""
    training, work = task.request["training"], task.work
    return RankPlan(
        root=work["root"],
        parallel=work["parallel"],
        device=training["device"],
        threads=work["threads"],
        precision=training["precision"],
        model=work["model"],
        code_version=work["code_version"],
    )

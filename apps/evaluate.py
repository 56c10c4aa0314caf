"""App that evaluates a model: its loss on each task of the pooled test set."""

from __future__ import annotations

import os
import time
from typing import Any

from apps.base.errors import placed
from apps.base.identity import Place
from apps.base.versions import require_same_code
from apps.evaluation.losses import EvaluationSettings, EvaluationWork, task_losses, test_set, uniform_loss
from apps.evaluation.on_ranks import losses_on_ranks, model_at, set_candidate
from apps.models.model import load_model
from apps.ranks.launchers import unmask_devices
from apps.ranks.parallel import fits_in_worker
from apps.ranks.processes import kept_ranks


def evaluate(
    place: Place, work: EvaluationWork, candidate: dict[str, Any], who: str, *, at: EvaluationSettings
) -> dict[str, Any]:
    """Evaluate an artifact.

    Args:
        place: the evaluator, and the round of the artifact.
        work: settings of the evaluation.
        candidate: a task result with ``artifact``, which is in the server's store, and for an update ``base``, the
            model that it was trained from, and ``master``, the float32 model that changes belong to.
        who: ``global`` or the name of a site.
        at: how it runs at its place.

    Returns:
        Losses by task under ``tasks``, their unweighted mean as ``mean_loss``, and under ``uniform_loss`` the loss of a
        model that gives every token the same probability.

    Raises:
        VersionMismatch: the evaluator runs another code version.
        ArtifactError: a file is damaged, or belongs to another model.
        UserMistake: there are no test records.
    """
    import torch

    started = time.time()
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        unmask_devices(os.environ)
        torch.set_num_threads(at["threads"])
        if at["parallel"] and not fits_in_worker(at["parallel"]):
            tasks, uniform = losses_on_ranks(place, work, candidate, at)
        else:
            if at["device"] != "cpu":
                kept_ranks().end()  # their model is on the devices that this process needs
            model = load_model(model_at(work, at), at["device"])
            set_candidate(model, work, candidate)
            tasks, uniform = task_losses(model, test_set(model, work, at["batch_size"])), uniform_loss(model)
    return {
        "who": who,
        "round": place["round"],
        "artifact": candidate["artifact"],
        "tasks": tasks,
        "mean_loss": sum(t["loss"] for t in tasks.values()) / len(tasks),
        "uniform_loss": uniform,
        "started": started,
        "ended": time.time(),
    }

"""Evaluation on ranks: every rank takes some of the batches, and their sums are added."""

from __future__ import annotations

from itertools import islice
from typing import Any

from apps.artifacts.store import artifact_path, verify
from apps.artifacts.traffic import is_delta
from apps.base.files import inside
from apps.base.identity import Place
from apps.base.stop import StopRequest
from apps.evaluation.losses import (
    EvaluationSettings,
    EvaluationWork,
    SampleLosses,
    TaskLoss,
    add_samples,
    by_task,
    test_set,
    uniform_loss,
)
from apps.models.loss import counted_logits, loss_per_sample
from apps.models.model import Model, ModelSpec, load_model, set_state
from apps.ranks.parallel import load_device, parallelize
from apps.ranks.process_group import ProcessGroup
from apps.ranks.processes import RankJob, RankPlan, run_as_ranks
from apps.training.attempt import require_same_base


def model_at(work: EvaluationWork, at: EvaluationSettings) -> ModelSpec:
    """Return the model with the path that it has at the place."""
    return ModelSpec(**{**work["model"], "source": at["source"] or work["model"]["source"]})


def set_candidate(model: Model, work: EvaluationWork, candidate: dict[str, Any], check: bool = True) -> None:
    """Copy an artifact into a network.

    Args:
        model: with or without ranks.
        work: settings of the evaluation.
        candidate: as for ``evaluate``.
        check: False at ranks for which another one checks the files.

    Raises:
        VersionMismatch: the base weights at this place are of another checkpoint than the server's.
        ArtifactError: a file is damaged, or belongs to another model.
    """
    path_of = verify if check else artifact_path
    require_same_base(model, candidate)
    path = path_of(work["store"], candidate["artifact"])
    if is_delta(candidate):
        set_state(model, path_of(work["store"], candidate["master"]), change=path)
    else:
        set_state(model, path, path_of(work["store"], candidate["base"]) if "base" in candidate else None)


def losses_on_ranks(
    place: Place, work: EvaluationWork, candidate: dict[str, Any], at: EvaluationSettings
) -> tuple[dict[str, TaskLoss], float]:
    """Evaluate on the ranks of this worker, which it keeps; at a site they are those that train."""
    assert at["parallel"] is not None
    plan = RankPlan(
        root=at["root"],
        parallel=at["parallel"],
        device=at["device"],
        threads=at["threads"],
        precision=at["precision"],
        model=model_at(work, at),
        code_version=work["code_version"],
    )
    logs = inside(at["root"], "logs", f"evaluation-{place['round']:04d}")
    job = RankJob(kind="evaluate", place=place, logs=str(logs), work={"work": work, "candidate": candidate, "at": at})
    losses, uniform = run_as_ranks(plan, job, StopRequest())  # nothing to save: a signal ends this process
    return losses, uniform


def rank_losses(
    work: EvaluationWork, candidate: dict[str, Any], at: EvaluationSettings, group: ProcessGroup
) -> tuple[dict[str, TaskLoss], float]:
    """Return the losses by task and the uniform loss, at every rank: batches are dealt over the ranks.

    A rank without a batch of its own computes another once more, because sharded weights are gathered together.

    Args:
        work: settings of the evaluation.
        candidate: as for ``evaluate``.
        at: how it runs at its place.
        group: the ranks.
    """
    import torch

    assert at["parallel"] is not None
    torch.set_num_threads(at["threads"])
    model = load_model(model_at(work, at), load_device(at["parallel"], group))
    if group.writes:  # if a file is damaged, this rank's error ends all ranks
        for name in ("artifact", "master" if is_delta(candidate) else "base"):
            if name in candidate:
                verify(work["store"], candidate[name])
    group.barrier()
    set_candidate(model, work, candidate, check=False)
    forward = parallelize(model, at["parallel"], at["precision"], group).forward
    batches = test_set(model, work, at["batch_size"], group.device).batches
    model.network.eval()
    table = [[0.0] * (2 * len(batch.tasks)) for batch in batches]  # sums, then counts; those of other ranks are added
    with torch.no_grad():  # FSDP does not work in inference mode
        for first in range(0, len(batches), group.size):
            own = first + group.rank
            batch = batches[own if own < len(batches) else first]
            logits = counted_logits(model.network, batch, forward)
            if own < len(batches):
                sums, counts = loss_per_sample(logits, batch)
                table[own] = [*sums.tolist(), *map(float, counts.tolist())]
    values, found = iter(group.total(*(value for row in table for value in row))), SampleLosses()
    for batch in batches:
        number = len(batch.tasks)
        add_samples(found, batch, list(islice(values, number)), list(islice(values, number)))
    return by_task(found), uniform_loss(model)

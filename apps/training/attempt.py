"""One attempt at a training task, as every rank does it: load, train, save, write the manifest."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import Manifest, write_manifest
from apps.artifacts.store import Artifact, artifact_path, load_tensors
from apps.base.errors import ArtifactError, BlockTooShort, Unfinished, VersionMismatch
from apps.base.files import inside, remove_unfinished
from apps.base.stop import StopRequest
from apps.models.batches import Samples, seed_of
from apps.models.model import Model, load_model, set_state
from apps.ranks.parallel import load_device, parallelize
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import AttemptRecord, Checkpoints
from apps.training.deadline import Deadline, block_end
from apps.training.loop import AttemptContext, TrainingResult, train
from apps.training.optimization import optimizer_tensors
from apps.training.progress import ProgressFile
from apps.training.samples import ShardSamples
from apps.training.save_rate import record_save, save_price_s
from apps.training.task import Task
from apps.training.update import OPTIMIZER, keep, write_update
from apps.trust.signed import MANIFEST
from apps.trust.site_answers import sign_answer

CHECKPOINT_SIZE = 3  # a checkpoint in sizes of the trained tensors: these and two moments of AdamW


@dataclass(frozen=True)
class Loaded:
    """Everything a training needs before its first step."""

    model: Model
    samples: Samples
    moments: dict[str, Any] | None
    optimizer: str  # for the manifest: fresh, carried or lost
    load_s: float
    verify_s: float  # part of it
    data_s: float  # part of it


@dataclass(frozen=True)
class Costs:
    """Seconds of this attempt for checkpoints, and for the update."""

    save_s: float
    update_s: float


def attempt_task(task: Task, group: ProcessGroup, stop: StopRequest, verify_s: float) -> Manifest | None:
    """Train, from the last checkpoint if there is one, and write the update and its manifest at the site.

    Args:
        task: to be trained; its base model is in the site's store and has been verified there.
        group: the ranks.
        stop: a request to stop.
        verify_s: seconds that the verification took.

    Returns:
        The manifest; None at the ranks that do not write.

    Raises:
        Unfinished: the block ends or a stop was requested, and the training is to finish in the next block.
        BlockTooShort: not one step could be done.
    """
    import torch

    started = time.time()
    torch.set_num_threads(task.work["threads"])
    spec, parallel, root = task.request["training"], task.work["parallel"], task.root
    checkpoints = Checkpoints(root, task.id, task.place["round"])
    progress = ProgressFile(root, task.id, task.place["round"], spec["steps"], task.out, with_loss=task.tells_losses)
    record = _begin(checkpoints, progress, task) if group.writes else None
    group.barrier()
    loaded = _load(task, group, started, verify_s)
    network = parallelize(loaded.model, parallel, spec["precision"], group)
    attempt = AttemptContext(
        group=group,
        deadline=_deadline(task, record, stop, loaded.model),
        checkpoints=checkpoints,
        report=progress.step if group.writes else _no_report,
        forward=network.forward,
        no_sync=network.no_sync,
        autocast=network.autocast,
        micro_batch=parallel["micro_batch"],
    )
    seed = seed_of(task.work["seed"], task.place["site"], task.place["round"])
    result = train(loaded.model, loaded.samples, spec, seed, loaded.moments, attempt)
    _require_complete(result, task)
    if group.writes:
        progress.phase("saving", result.state.steps)
    began = time.time()
    artifact, manifest = _save(task, group, loaded.model, result), None
    if artifact and record:
        costs = Costs(save_s=checkpoints.spent_s, update_s=time.time() - began)
        manifest = _manifest(task, result, loaded, artifact, record, costs, started)
        manifest["signed"] = sign_answer(MANIFEST, manifest, root, task.order)
        write_manifest(root, task.out, manifest)
        checkpoints.discard()
    group.barrier()  # some launchers end the others when the first rank ends
    return manifest


def _no_report(_step: int, _loss: float, _speed: float) -> None:
    """Do nothing: only the rank that writes files reports its progress."""


def _begin(checkpoints: Checkpoints, progress: ProgressFile, task: Task) -> AttemptRecord:
    progress.phase("loading")
    for folder in (task.root, task.out):
        remove_unfinished(folder)
    return checkpoints.begin()


def _deadline(task: Task, record: AttemptRecord | None, stop: StopRequest, model: Model) -> Deadline:
    """Return the deadline of a rank; the rank that writes files decides when to save and when the time is over."""
    spec = task.request["training"]
    if record is None:
        return Deadline(math.inf, None, stop, save_s=math.inf)
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.trained.values())
    save_s = record["save_s"] or save_price_s(task.root, CHECKPOINT_SIZE * trained)
    return Deadline(spec["checkpoint_s"], block_end(), stop, record["step_s"], save_s, until=spec["until"])


def _load(task: Task, group: ProcessGroup, started: float, verify_s: float) -> Loaded:
    model = load_model(task.work["model"], load_device(task.work["parallel"], group))
    require_same_base(model, task.base)
    began = time.time()
    samples = ShardSamples(task.root, task.shard["shard_sha256"], model.tokenizer, task.work["data"])
    data_s = time.time() - began
    set_state(model, artifact_path(task.store, task.base["artifact"]))
    moments, optimizer = _load_moments(task.root, task.request["optimizer_from"])
    return Loaded(model, samples, moments, optimizer, time.time() - started + verify_s, verify_s, data_s)


def _require_complete(result: TrainingResult, task: Task) -> None:
    """Check that the steps done answer the request.

    Raises:
        Unfinished: see ``attempt_task``.
        BlockTooShort: see ``attempt_task``.
    """
    spec, done = task.request["training"], result.state.steps
    if done == spec["steps"] or (done and (result.cut or spec["on_walltime"] == "return")):
        return
    so_far = f"{done} of {spec['steps']} steps are done and saved"
    if result.steps_here:
        raise Unfinished(f"training stopped before the end of its block: {so_far}", remedy="The next block continues")
    raise BlockTooShort(
        f"the remaining time of the block is too short for one step of training: {so_far}",
        remedy="Request a longer walltime",
    )


def _save(task: Task, group: ProcessGroup, model: Model, result: TrainingResult) -> Artifact | None:
    """Write the update to the site's store, and the moments if the campaign keeps them; all ranks take part."""
    if task.request["training"]["keep_optimizer"]:
        moments = optimizer_tensors(model.trained, result.optimizer)
        keep(task, group, OPTIMIZER, moments, task.request["optimizer_from"])
    began = time.monotonic()
    artifact = write_update(task, group, model)
    if artifact:
        record_save(task.root, artifact["nbytes"], time.monotonic() - began)
    return artifact


def _manifest(
    task: Task,
    result: TrainingResult,
    loaded: Loaded,
    artifact: Artifact,
    record: AttemptRecord,
    costs: Costs,
    started: float,
) -> Manifest:
    done = result.state
    return Manifest(
        task_id=task.id,
        code_version=task.work["code_version"],
        site=task.place["site"],
        round=task.place["round"],
        base=task.base["artifact"]["sha256"],
        artifact=artifact,
        store=str(task.out),
        steps_done=done.steps,
        steps_asked=task.request["training"]["steps"],
        samples=result.samples,
        shard_samples=task.shard["samples"],
        shard_cut=task.shard["cut"],
        tokens=done.tokens,
        loss_first=done.losses[0] if task.tells_losses else None,
        loss_last=done.losses[-1] if task.tells_losses else None,
        train_s=done.seconds,
        attempts=record["attempts"],
        load_s=loaded.load_s,
        verify_s=loaded.verify_s,
        data_s=loaded.data_s,
        save_s=costs.save_s,
        update_s=costs.update_s,
        tokens_per_s=done.tokens / max(done.seconds, 1e-9),
        padding=result.padding,
        optimizer=loaded.optimizer,
        started=started,
        ended=time.time(),
        reused=False,
    )


def require_same_base(model: Model, base: dict[str, Any]) -> None:
    """Check that the frozen weights under an adapter are the same as at the server.

    Args:
        model: of the site.
        base: the stage-out result.

    Raises:
        VersionMismatch: the site has another checkpoint under the same name.
    """
    if base.get("frozen", "") not in ("", model.fingerprint):
        raise VersionMismatch(
            f"the base model {model.spec['source']} of this site is another checkpoint than that of the server",
            remedy="Copy the same files to the site, then resume",
        )


def _load_moments(root: Path, task_id: str | None) -> tuple[dict | None, str]:
    """Load the moments that a task has kept; also return what the manifest says about them."""
    if task_id is None:
        return None, "fresh"
    try:
        return load_tensors(inside(root, OPTIMIZER, f"{task_id}.safetensors")), "carried"
    except ArtifactError:  # missing or truncated
        return None, "lost"

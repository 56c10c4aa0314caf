"""One attempt at a training task, as every rank does it: load, train, save, and tell."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import Manifest, write_manifest
from apps.artifacts.store import Artifact, artifact_path, load_tensors, verify
from apps.base.errors import ArtifactError, BlockTooShort, Unfinished, UserMistake, VersionMismatch
from apps.base.files import inside, remove_unfinished
from apps.base.identity import identity
from apps.base.stop import StopRequest
from apps.models.batches import DataSpec, Sample, encode, seed_of
from apps.models.model import Model, load_model, set_state
from apps.ranks.parallel import load_device, parallelize
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import AttemptRecord, Checkpoints
from apps.training.deadline import Deadline, block_end
from apps.training.loop import AttemptContext, TrainingResult, train
from apps.training.optimization import optimizer_tensors
from apps.training.progress import ProgressFile
from apps.training.task import Task


@dataclass(frozen=True)
class Loaded:
    """What is there before the first step."""

    model: Model
    samples: Sequence[Sample]
    moments: dict[str, Any] | None
    optimizer: str  # the word for the manifest
    load_s: float


def attempt_task(task: Task, team: ProcessGroup, stop: StopRequest) -> Manifest | None:
    """Train, from the last checkpoint if there is one, and leave the update and its manifest at the site.

    Returns:
        The manifest; None at the ranks that do not write.

    Raises:
        Unfinished: the block ends or somebody asked to stop, and the order is to finish in the next block.
        BlockTooShort: not one step could be done.
    """
    import torch

    started = time.time()
    torch.set_num_threads(task.work["threads"])
    spec, parallel, root = task.order["training"], task.work["parallel"], task.root
    checkpoints = Checkpoints(root, task.id, task.place["round"])
    progress = ProgressFile(root, task.id, task.place["round"], spec["steps"])
    diary = _begin(checkpoints, progress, root) if team.writes else None
    team.wait()
    loaded = _load(task, team, started)
    spread_model = parallelize(loaded.model, parallel, spec["precision"], team)
    watch = _watch(task, diary, stop)
    attempt = AttemptContext(
        team=team,
        watch=watch,
        checkpoints=checkpoints,
        report=progress.step if team.writes else _silent,
        forward=spread_model.forward,
        hold_back=spread_model.hold_back,
        autocast=spread_model.autocast,
        micro_batch=parallel["micro_batch"],
    )
    seed = seed_of(task.work["seed"], task.place["site"], task.place["round"])
    outcome = train(loaded.model, loaded.samples, spec, seed, loaded.moments, attempt)
    _require_enough(outcome, task)
    if team.writes:
        progress.phase("saving", outcome.standing.steps)
    artifact, manifest = _save(task, team, loaded.model, outcome), None
    if artifact and diary:
        manifest = _manifest(task, outcome, loaded, artifact, diary, started)
        write_manifest(root, manifest)
        checkpoints.discard()
    team.wait()  # some launchers end the others when the first rank ends
    return manifest


def _silent(step: int, loss: float, speed: float) -> None:
    """The report of the ranks that do not write."""


def _begin(checkpoints: Checkpoints, progress: ProgressFile, root: Path) -> AttemptRecord:
    progress.phase("loading")
    remove_unfinished(root)
    return checkpoints.begin()


def _watch(task: Task, diary: AttemptRecord | None, stop: StopRequest) -> Deadline:
    """The watch of a rank; the end of the block is looked after by the rank that writes."""
    spec = task.order["training"]
    if diary is None:
        return Deadline(spec["checkpoint_s"], None, stop)
    return Deadline(spec["checkpoint_s"], block_end(), stop, diary["step_s"], diary["save_s"], until=spec["until"])


def _load(task: Task, team: ProcessGroup, started: float) -> Loaded:
    store = task.root / "artifacts"
    model = load_model(task.work["model"], load_device(task.work["parallel"], team))
    require_same_base(model, task.base)
    samples = shard_samples(model, task.root, task.shard["shard_sha256"], task.work["data"])
    if team.writes:  # should it not be whole, this rank's error ends all
        verify(store, task.base["artifact"])
    set_state(model, artifact_path(store, task.base["artifact"]))
    moments, optimizer = _carried(task.root, task.order["optimizer_from"])
    return Loaded(model, samples, moments, optimizer, time.time() - started)


def _require_enough(outcome: TrainingResult, task: Task) -> None:
    """Refuse to go on with an outcome that is not what was ordered.

    Raises:
        Unfinished, BlockTooShort: see ``attempt_task``.
    """
    spec, done = task.order["training"], outcome.standing.steps
    if done == spec["steps"] or (done and (outcome.cut or spec["on_walltime"] == "return")):
        return
    so_far = f"{done} of {spec['steps']} steps are done and saved"
    if outcome.steps_here:
        raise Unfinished(f"training stopped before the end of its block: {so_far}", remedy="The next block goes on")
    raise BlockTooShort(
        f"the rest of the block does not suffice for one step of training: {so_far}", remedy="Ask for a longer walltime"
    )


def _save(task: Task, team: ProcessGroup, model: Model, outcome: TrainingResult) -> Artifact | None:
    """The update in the site's store, and the moments if the campaign keeps them; all ranks take part."""
    if task.order["training"]["keep_optimizer"]:
        _keep_optimizer(task, team, model, outcome)
    return team.write(task.root / "artifacts", model.trained, "update")


def _manifest(
    task: Task, outcome: TrainingResult, loaded: Loaded, artifact: Artifact, diary: AttemptRecord, started: float
) -> Manifest:
    done = outcome.standing
    return Manifest(
        task_id=task.id,
        code_version=task.work["code_version"],
        site=task.place["site"],
        round=task.place["round"],
        base=task.base["artifact"]["sha256"],
        artifact=artifact,
        store=str(task.root / "artifacts"),
        steps_done=done.steps,
        steps_asked=task.order["training"]["steps"],
        samples=outcome.samples,
        shard_samples=task.shard["samples"],
        tokens=done.tokens,
        loss_first=done.losses[0],
        loss_last=done.losses[-1],
        train_s=done.seconds,
        attempts=diary["attempts"],
        load_s=loaded.load_s,
        tokens_per_s=done.tokens / max(done.seconds, 1e-9),
        padding=outcome.padding,
        optimizer=loaded.optimizer,
        started=started,
        ended=time.time(),
        reused=False,
    )


def require_same_base(model: Model, base: dict[str, Any]) -> None:
    """Refuse to train an adapter on other frozen weights than the server's.

    Raises:
        VersionMismatch: the site has another checkpoint under the same name.
    """
    if base.get("frozen", "") not in ("", model.fingerprint):
        raise VersionMismatch(
            f"the base model {model.spec['source']} of this site is another checkpoint than the server's",
            remedy="Give the site the same files, then resume",
        )


def shard_samples(model: Model, root: Path, sha256: str, data: DataSpec) -> Sequence[Sample]:
    """The site's shard as tokens; a warm worker keeps the last one beside its model.

    Raises:
        UserMistake: the site's records are no longer those it enrolled with.
    """
    from apps.training.shard import open_shard, read_shard

    key = identity({"root": str(root), "shard": sha256, "data": data})
    if model.warm.get("shard") != key:
        with records_found():
            found = open_shard(root, data["source"], data["tasks"], data["per_task"]).sha256
            records = read_shard(root, sha256) if found == sha256 else None
        if records is None:
            raise UserMistake("the site's records have changed since it enrolled", file=str(root / "shard"))
        model.warm = {"shard": key, "samples": encode(records, model.tokenizer, data)}
    return model.warm["samples"]


@contextmanager
def records_found() -> Iterator[None]:
    """Records that are not there, or cannot be read, are a user's mistake."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise UserMistake(str(error)) from None


def _carried(root: Path, task_id: str | None) -> tuple[dict | None, str]:
    """The optimiser state a task left behind, and the word for the manifest."""
    if task_id is None:
        return None, "fresh"
    try:
        return load_tensors(inside(root, "optimizer", f"{task_id}.safetensors")), "carried"
    except ArtifactError:  # not there, or cut off
        return None, "lost"


def _keep_optimizer(task: Task, team: ProcessGroup, model: Model, outcome: TrainingResult) -> None:
    """Save the moments under this task's name; of the older ones only those it began with are still of use."""
    folder, before = inside(task.root, "optimizer"), task.order["optimizer_from"]
    artifact = team.write(folder, optimizer_tensors(model.trained, outcome.optimizer), "optimizer")
    if artifact is None:
        return
    os.replace(artifact_path(folder, artifact), folder / f"{task.id}.safetensors")
    for path in folder.glob("*.safetensors") if before else ():
        if path.stem not in (task.id, before):
            path.unlink()

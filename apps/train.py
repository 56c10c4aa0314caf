"""The tasks of a site: enrol once, then train when asked. Both answer at once when the work is already done."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from apps.artifacts import artifact_path, load_tensors, save_tensors, verify
from apps.batches import DataSpec, Sample, encode, seed_of
from apps.errors import ArtifactError, UserMistake, VersionMismatch, placed
from apps.files import cannot_write, inside, remove_unfinished, write_json
from apps.manifests import Manifest, Place, find_manifest, identity, write_manifest
from apps.models import Model, ModelSpec, load_model, set_state
from apps.pipeline import run_pipeline
from apps.progress import ProgressFile
from apps.training import Outcome, TrainingSpec, optimizer_tensors, train
from apps.versions import library_versions, require_same_code


class SiteWork(TypedDict):
    """What stays the same for a site over a campaign, in plain values."""

    root: str  # the site's storage for this campaign
    model: ModelSpec
    data: DataSpec
    seed: int
    threads: int
    code_version: str


class Order(TypedDict):
    """What a site is asked to do in one round."""

    training: TrainingSpec
    optimizer_from: str | None  # task whose optimiser state goes on, if the campaign carries it over
    attempt: int  # tells a repeated order from the first; no part of the work's identity


def enrol(place: Place, work: SiteWork) -> dict[str, Any]:
    """The first task at a site: same code as the driver, storage writable, shard there; tells what the site has.

    Raises:
        VersionMismatch: the site runs other code.
        StorageError: the storage cannot be written.
        UserMistake: there are no records for the site's tasks.
    """
    from data.shard import open_shard

    started = time.time()
    root = Path(work["root"])
    data = work["data"]
    with placed(place["site"]):
        require_same_code(work["code_version"], place["site"])
        try:
            root.mkdir(parents=True, exist_ok=True)
            shard = open_shard(root, data["source"], data["tasks"], data["per_task"])
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            raise UserMistake(str(error)) from None
        except OSError as error:
            raise cannot_write(root, error) from error
        write_json(root / "site.json", {"site": place["site"], "libraries": library_versions()})
    return {
        "shard_sha256": shard.sha256, "samples": shard.samples, "per_task": shard.per_task,
        "libraries": library_versions(), "host": os.uname().nodename, "free_bytes": shutil.disk_usage(root).free,
        "started": started, "ended": time.time(),
    }  # fmt: skip


def local_train(place: Place, work: SiteWork, order: Order, base: dict[str, Any], shard: dict[str, Any]) -> Manifest:
    """Train at a site, or answer with what an earlier attempt at the same work has left there.

    Args:
        place: the site and the round.
        work: what stays the same for the site.
        order: what this round asks for.
        base: the stage-out result: the model to start from, in the site's store.
        shard: the enrol result.

    Returns:
        The manifest of the update.

    Raises:
        VersionMismatch: the site runs other code.
        StorageError: the storage cannot be written, or leads outside the site's root.
        ArtifactError: the base model is not whole.
        TrainingError: the loss is not finite.
        UserMistake: the site's records have changed.
    """
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        root = Path(work["root"])
        for folder in ("artifacts", "manifests", "optimizer"):
            inside(root, folder)
        task_id = task_identity(place, work, order, base, shard)
        done = find_manifest(root, task_id)
        if done:  # its root may have been moved since
            return Manifest(**{**done, "store": str(root / "artifacts"), "reused": True})
        return _train_anew(place, work, order, base, shard, root, task_id)


def task_identity(place: Place, work: SiteWork, order: Order, base: dict[str, Any], shard: dict[str, Any]) -> str:
    """Names the work: code version, base model, shard, settings, round and site; not where files lie."""
    return identity({
        "code": work["code_version"], "base": base["artifact"]["sha256"], "shard": shard["shard_sha256"],
        "model": work["model"], "data": {k: v for k, v in work["data"].items() if k != "source"},
        "training": order["training"], "optimizer_from": order["optimizer_from"],
        "seed": work["seed"], "round": place["round"], "site": place["site"], "threads": work["threads"],
    })  # fmt: skip


def _train_anew(
    place: Place, work: SiteWork, order: Order, base: dict[str, Any], shard: dict[str, Any], root: Path, task_id: str
) -> Manifest:
    import torch

    started = time.time()
    torch.set_num_threads(work["threads"])
    spec = order["training"]
    progress = ProgressFile(root, task_id, place["round"], spec["steps"])
    progress.phase("loading")
    remove_unfinished(root)
    model = load_model(work["model"], spec["device"])
    require_same_base(model, base)
    samples = shard_samples(model, root, shard["shard_sha256"], work["data"])
    verify(root / "artifacts", base["artifact"])
    set_state(model, artifact_path(root / "artifacts", base["artifact"]))
    moments, optimizer = _carried(root, order["optimizer_from"])
    seed = seed_of(work["seed"], place["site"], place["round"])
    loaded = time.time()
    outcome = train(model, samples, spec, seed, moments, progress.step)
    progress.phase("saving")
    if spec["keep_optimizer"]:
        _keep_optimizer(root, task_id, order["optimizer_from"], model, outcome)
    update = dict(run_pipeline(model.trained.items(), stages=[]))
    manifest = Manifest(
        task_id=task_id, code_version=work["code_version"], site=place["site"], round=place["round"],
        base=base["artifact"]["sha256"], artifact=save_tensors(root / "artifacts", update, "update"),
        store=str(root / "artifacts"),
        steps_done=outcome.steps, steps_asked=spec["steps"], samples=outcome.samples,
        shard_samples=shard["samples"], tokens=outcome.tokens, loss_first=outcome.losses[0],
        loss_last=outcome.losses[-1], train_s=outcome.seconds, load_s=loaded - started,
        tokens_per_s=outcome.tokens / max(outcome.seconds, 1e-9), padding=outcome.padding,
        optimizer=optimizer, started=started, ended=time.time(), reused=False,
    )  # fmt: skip
    write_manifest(root, manifest)
    return manifest


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
    from data.shard import open_shard, read_shard

    key = identity({"root": str(root), "shard": sha256, "data": data})
    if model.warm.get("shard") != key:
        try:
            found = open_shard(root, data["source"], data["tasks"], data["per_task"]).sha256
            records = read_shard(root, sha256) if found == sha256 else None
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            raise UserMistake(str(error)) from None
        if records is None:
            raise UserMistake("the site's records have changed since it enrolled", file=str(root / "shard"))
        model.warm = {"shard": key, "samples": encode(records, model.tokenizer, data)}
    return model.warm["samples"]


def _carried(root: Path, task_id: str | None) -> tuple[dict | None, str]:
    """The optimiser state a task left behind, and the word for the manifest."""
    if task_id is None:
        return None, "fresh"
    try:
        return load_tensors(inside(root, "optimizer", f"{task_id}.safetensors")), "carried"
    except ArtifactError:  # not there, or cut off
        return None, "lost"


def _keep_optimizer(root: Path, task_id: str, before: str | None, model: Model, outcome: Outcome) -> None:
    """Save the moments under this task's name; of the older ones only those it began with are still of use."""
    folder = inside(root, "optimizer")
    artifact = save_tensors(folder, optimizer_tensors(model, outcome.optimizer), "optimizer")
    os.replace(artifact_path(folder, artifact), folder / f"{task_id}.safetensors")
    for path in folder.glob("*.safetensors") if before else ():
        if path.stem not in (task_id, before):
            path.unlink()

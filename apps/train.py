"""Apps of a site: enrol once, then train on request. Both return at once when the work is already done."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import FOLDER as MANIFESTS
from apps.artifacts.manifests import Manifest, remove_update
from apps.artifacts.store import Artifact, artifact_path
from apps.base.errors import placed
from apps.base.files import cannot_write, inside, write_json
from apps.base.identity import Place
from apps.base.stop import StopRequest, stop_on_sigterm
from apps.base.versions import library_versions, require_same_code
from apps.models.model import load_tokenizer
from apps.ranks.launchers import make_cache_folders, unmask_devices
from apps.ranks.parallel import fits_in_worker
from apps.ranks.process_group import ProcessGroup
from apps.site import MARK
from apps.training.attempt import attempt_task
from apps.training.launch import train_as_ranks
from apps.training.leases import FOLDER as LEASES
from apps.training.leases import acquire
from apps.training.private import require_private
from apps.training.samples import shard_cuts, written_shard
from apps.training.task import BASES, SiteWork, Task, TrainRequest, found_manifest
from apps.training.update import LEFT_OVER, OPTIMIZER
from apps.transfer import move
from apps.trust.orders import NO_ORDER, OrderFacts
from apps.trust.signed import ENROLMENT
from apps.trust.site_answers import sign_answer

PRIVATE = 0o700  # mode of folders
STORAGE = (BASES, MANIFESTS, OPTIMIZER, LEFT_OVER, "checkpoints", "logs", LEASES)


def enrol(place: Place, work: SiteWork, order: OrderFacts = NO_ORDER) -> dict[str, Any]:
    """Check a site before its first training: same code as the driver, writable storage, records; report them.

    Args:
        place: the site.
        work: what stays the same for the site.
        order: of the driver.

    Returns:
        The shard (``shard_sha256``, ``samples``, ``per_task``), ``cut``: for each task with samples over
        ``data.max_tokens`` how many of them lose a part of their ``question`` or ``answer``; ``libraries``, ``host``,
        ``free_bytes`` of the storage; ``signed`` with the site's key, which is made if there is none.

    Raises:
        VersionMismatch: the site runs another code version.
        StorageError: the storage cannot be written.
        UserMistake: there are no records for the site's tasks, or others could read them through a collection.
    """
    started = time.time()
    root = Path(work["root"])
    data = work["data"]
    with placed(place["site"]):
        require_same_code(work["code_version"], place["site"])
        require_private(work)
        for folder in (root, Path(work["out"])):
            make_private(folder)
        (Path(work["out"]) / MARK).unlink(missing_ok=True)
        shard = written_shard(root, data)
        threads = work["threads"] * work["parallel"]["ranks_per_node"]
        cuts = shard_cuts(shard, lambda: load_tokenizer(work["model"]), data, threads)
        write_json(root / "site.json", {"site": place["site"], "libraries": library_versions()})
        found = {
            "shard_sha256": shard.sha256,
            "samples": shard.samples,
            "per_task": shard.per_task,
            "cut": cuts,
            "libraries": library_versions(),
            "host": os.uname().nodename,
            "free_bytes": shutil.disk_usage(root).free,
            "started": started,
            "ended": time.time(),
        }
        return {**found, "signed": sign_answer(ENROLMENT, found, root, order)}


def local_train(
    place: Place,
    work: SiteWork,
    request: TrainRequest,
    base: dict[str, Any],
    shard: dict[str, Any],
    order: OrderFacts = NO_ORDER,
) -> Manifest:
    """Train at a site, or return the result of an earlier attempt at the same task.

    Args:
        place: the site and the round.
        work: what stays the same for the site.
        request: of this round.
        base: the stage-out result: the model to start from, in the site's store.
        shard: the enrol result.
        order: of the driver.

    Returns:
        The manifest of the update.

    Raises:
        VersionMismatch: the site runs another code version.
        StorageError: the storage cannot be written, or leads outside the site's root.
        ArtifactError: the base model is damaged.
        LossNotFinite: the training has diverged.
        UserMistake: the site's records have changed, or others could read them through a collection.
        Unfinished: the training stopped before the end of its block and has saved; a repeated request continues it.
        BlockTooShort: the remaining time of the block was too short for one step.
        RanksLost: one of several ranks ended without reporting a result.
        LeaseHeld: another process is working on the same task.
    """
    task = Task(place, work, request, base, shard, order)
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        require_private(work)
        for folder in STORAGE:
            inside(task.root, folder)
        done = earlier_result(task)
        forget_fetched(task, done)
        if done:
            return done
        with stop_on_sigterm() as stop, acquire(task.root, task.id, give_up=lambda: stop.requested):
            return earlier_result(task) or train_now(task, stop)  # the last holder may just have finished


def finished_training(
    place: Place, work: SiteWork, request: TrainRequest, base: dict[str, Any], shard: dict[str, Any]
) -> dict[str, Manifest | None]:
    """Return the result of a training that has finished, without training: ``manifest``, None if it has not.

    For the arguments see ``local_train``. It needs no block: a login node answers it.
    """
    task = Task(place, work, request, base, shard)
    with placed(**place):
        return {"manifest": earlier_result(task)}


def earlier_result(task: Task) -> Manifest | None:
    """Return the manifest of an earlier attempt, with the present store: the root may have been moved since."""
    done = found_manifest(task)
    return Manifest(**{**done, "store": str(task.out), "reused": True}) if done else None


def train_now(task: Task, stop: StopRequest) -> Manifest:
    """Train in this process, or as ranks that it starts.

    The model is linked or copied into the site's own storage. What others may write to is copied: they could change
    the content of a link.

    Args:
        task: to be trained.
        stop: a request to stop.
    """
    began = time.monotonic()
    own = Path(task.base["store"]).resolve().is_relative_to(task.root.resolve())
    if not own:
        with suppress(OSError):  # made by Globus Transfer with the modes of its server
            Path(task.base["store"]).chmod(PRIVATE)
    move(task.base["artifact"], task.base["store"], str(task.store), link=own)
    keep_only(task.store, task.base["artifact"])
    verify_s = time.monotonic() - began
    if not fits_in_worker(task.work["parallel"]):
        return train_as_ranks(task, stop, verify_s)
    unmask_devices(os.environ)
    make_cache_folders(os.environ)
    manifest = attempt_task(task, ProcessGroup(task.request["training"]["device"]), stop, verify_s)
    assert manifest is not None  # a group of one writes
    return manifest


def make_private(folder: Path) -> None:
    """Create a folder that only its owner may enter; one that exists keeps its mode.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def keep_only(store: Path, artifact: Artifact) -> None:
    """Delete the models of earlier rounds from the site's own storage."""
    kept = artifact_path(store, artifact)
    for path in store.glob("*.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)


def forget_fetched(task: Task, kept: Manifest | None) -> None:
    """Delete the updates that the server has fetched by now: through a collection it may read them only.

    Args:
        task: the request.
        kept: the result that is asked for again, or None.
    """
    own = kept["artifact"]["sha256"] if kept else ""
    for sha256 in task.base.get("fetched", ()):
        if sha256 != own:
            remove_update(task.out, Artifact(sha256=sha256, nbytes=0, kind=""))

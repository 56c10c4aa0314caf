"""The tasks of a site: enrol once, then train when asked. Both answer at once when the work is already done."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import Manifest
from apps.base.errors import placed
from apps.base.files import cannot_write, inside, write_json
from apps.base.identity import Place
from apps.base.stop import StopRequest, stop_on_sigterm
from apps.base.versions import library_versions, require_same_code
from apps.ranks.launchers import unmask_devices
from apps.ranks.parallel import fits_in_worker
from apps.ranks.process_group import ProcessGroup
from apps.training.attempt import attempt_task, records_found
from apps.training.launch import train_as_ranks
from apps.training.leases import FOLDER as CLAIMS
from apps.training.leases import acquire
from apps.training.task import SiteWork, Task, TrainRequest, found_answer
from apps.transfer import move

STORAGE = ("artifacts", "manifests", "optimizer", "checkpoints", "logs", CLAIMS)


def enrol(place: Place, work: SiteWork) -> dict[str, Any]:
    """The first task at a site: same code as the driver, storage writable, shard there; tells what the site has.

    Raises:
        VersionMismatch: the site runs other code.
        StorageError: the storage cannot be written.
        UserMistake: there are no records for the site's tasks.
    """
    from apps.training.shard import open_shard

    started = time.time()
    root = Path(work["root"])
    data = work["data"]
    with placed(place["site"]):
        require_same_code(work["code_version"], place["site"])
        try:
            root.mkdir(parents=True, exist_ok=True)
            with records_found():
                shard = open_shard(root, data["source"], data["tasks"], data["per_task"])
        except OSError as error:
            raise cannot_write(root, error) from error
        write_json(root / "site.json", {"site": place["site"], "libraries": library_versions()})
    return {
        "shard_sha256": shard.sha256,
        "samples": shard.samples,
        "per_task": shard.per_task,
        "libraries": library_versions(),
        "host": os.uname().nodename,
        "free_bytes": shutil.disk_usage(root).free,
        "started": started,
        "ended": time.time(),
    }


def local_train(
    place: Place, work: SiteWork, order: TrainRequest, base: dict[str, Any], shard: dict[str, Any]
) -> Manifest:
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
        Unfinished: it stopped before the end of its block and has saved; to ask again goes on from there.
        BlockTooShort: the rest of the block did not suffice for one step.
        RanksLost: one of several ranks has ended without a word.
        LeaseHeld: another process is training this very task.
    """
    task = Task(place, work, order, base, shard)
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        for folder in STORAGE:
            inside(task.root, folder)
        done = earlier_answer(task)
        if done:
            return done
        with stop_on_sigterm() as stop, acquire(task.root, task.id, give_up=lambda: stop.asked):
            return earlier_answer(task) or train_now(task, stop)  # its last holder may just have finished


def earlier_answer(task: Task) -> Manifest | None:
    """What an earlier attempt has left, with where it lies now: the root may have been moved since."""
    done = found_answer(task)
    return Manifest(**{**done, "store": str(task.root / "artifacts"), "reused": True}) if done else None


def train_now(task: Task, stop: StopRequest) -> Manifest:
    """Train in this process, or as ranks that it starts.

    The model may have been left in the store of another site of the same facility: it takes a name of its own here.
    """
    move(task.base["artifact"], task.base["store"], str(task.root / "artifacts"), link=True)
    if not fits_in_worker(task.work["parallel"]):
        return train_as_ranks(task, stop)
    unmask_devices(os.environ)
    manifest = attempt_task(task, ProcessGroup(task.order["training"]["device"]), stop)
    assert manifest is not None  # this rank writes
    return manifest

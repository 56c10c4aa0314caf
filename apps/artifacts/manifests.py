"""Manifests: the records that a site keeps of its updates.

The site's own copy, below its private root, says that a task is finished. Another one leaves the site with the update.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NotRequired, TypedDict

from apps.artifacts.store import Artifact, artifact_path, verify
from apps.base.errors import ArtifactError, UpdateRefused
from apps.base.files import inside, write_json
from apps.trust.signed import Signed
from data.foreign import read_json

FOLDER = "manifests"  # in the site's own storage
TASK_ID = re.compile("[0-9a-f]{32}")
LARGEST = 1 << 20  # bytes of a manifest
HEADER_SPARE = 1 << 16  # bytes by which the header of an update may exceed that of its base


class Manifest(TypedDict):
    """Record of one finished training task; times in seconds, ``started`` and ``ended`` since 1970."""

    task_id: str
    code_version: str
    site: str
    round: int
    base: str  # SHA-256 of the model that training started from
    artifact: Artifact  # the update
    store: str  # folder of the update at the site
    steps_done: int
    steps_asked: int
    samples: int  # samples used in these steps
    shard_samples: int  # all samples of the site: its weight in a mean by samples
    shard_cut: dict[str, dict[str, int]]  # task -> how many of them lose a part of their "question" or "answer"
    tokens: int
    loss_first: float | None  # None: the site's policy withholds it
    loss_last: float | None
    train_s: float  # like steps, tokens and losses, over all attempts
    attempts: int  # how often the task was started: 1 without interruptions
    load_s: float  # of this attempt, like the next ones: model and base, before the first step
    verify_s: float  # part of it: hash of the base
    data_s: float  # part of it: samples
    save_s: float  # checkpoints
    update_s: float  # gather, hash and write the update, and the moments if they are kept
    tokens_per_s: float
    padding: float  # fraction of positions that were padding
    optimizer: str  # "fresh", "carried" from the last round, or "lost" if requested and not found
    started: float
    ended: float
    reused: bool  # True if an earlier attempt had finished the task
    signed: NotRequired[Signed]  # by the site, when it was written


def manifest_path(folder: str | Path, task_id: str) -> Path:
    """Return the path of a task's manifest in a folder.

    Raises:
        ArtifactError: the id is none; it must not lead to another folder.
    """
    if not isinstance(task_id, str) or not TASK_ID.fullmatch(task_id):
        raise ArtifactError(f"{str(task_id)[:70]!r} is no task id: it must be 32 hexadecimal digits")
    return Path(folder) / f"{task_id}.json"


def write_manifest(root: Path, out: Path, manifest: Manifest) -> None:
    """Write a manifest beside its update, then into the site's own storage.

    Args:
        root: the site's own storage.
        out: folder of what leaves the site.
        manifest: of a finished task.
    """
    write_json(manifest_path(out, manifest["task_id"]), manifest)
    write_json(manifest_path(inside(root, FOLDER), manifest["task_id"]), manifest)


def find_manifest(root: Path, task_id: str, out: Path) -> Manifest | None:
    """Return the manifest of a finished task if its update is still there and whole, else None.

    A copy of the manifest that was deleted in ``out`` is written again.

    Args:
        root: the site's own storage.
        task_id: of the task.
        out: folder of what leaves the site.
    """
    try:
        manifest: Manifest = read_json(manifest_path(inside(root, FOLDER), task_id), LARGEST)
        verify(out, manifest["artifact"])
        leaving = manifest_path(out, manifest["task_id"])
    except (OSError, ArtifactError, ValueError, KeyError, TypeError):
        return None  # not usable: the task is repeated
    if not leaving.is_file():
        write_json(leaving, manifest)
    return manifest


def remove_update(out: str | Path, artifact: Artifact) -> None:
    """Delete an update and the manifests that name it from the folder of what leaves the site."""
    with suppress(OSError):  # gone already, or owned by another user; nothing in the campaign depends on it
        artifact_path(out, artifact).unlink()
    for path in Path(out).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # others may write here: it may be no manifest
            if TASK_ID.fullmatch(path.stem) and read_json(path, LARGEST)["artifact"]["sha256"] == artifact["sha256"]:
                path.unlink()


def require_acceptable(manifest: Manifest, base: Artifact) -> None:
    """Check what a site says of an update before a byte of it moves: its names, and its size.

    Args:
        manifest: of the update.
        base: the model that the site was sent; an update has no more tensors than it.

    Raises:
        UpdateRefused: a name could lead elsewhere, or the update would be larger than the model.
    """
    try:
        artifact_path("", manifest["artifact"])
        manifest_path("", manifest["task_id"])
        nbytes, limit = manifest["artifact"]["nbytes"], base["nbytes"] + HEADER_SPARE
        if type(nbytes) is not int or not 0 < nbytes <= limit:
            raise ArtifactError(f"it has {str(nbytes)[:20]} bytes, an update of this model at most {limit:,}")
    except (ArtifactError, KeyError, TypeError) as error:
        raise UpdateRefused(f"update refused: {getattr(error, 'what', f'its manifest lacks {error}')}") from None

"""Manifests: the records that a site writes beside its updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from apps.artifacts.store import Artifact, verify
from apps.base.errors import ArtifactError
from apps.base.files import write_json


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


def manifest_path(root: Path, task_id: str) -> Path:
    """Return the path of a task's manifest below a site's storage root."""
    return root / "manifests" / f"{task_id}.json"


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write a manifest below a site's storage root."""
    write_json(manifest_path(root, manifest["task_id"]), manifest)


def find_manifest(root: Path, task_id: str) -> Manifest | None:
    """Return the manifest of a finished task if its update is still there and whole, else None."""
    try:
        manifest: Manifest = json.loads(manifest_path(root, task_id).read_text())
        verify(root / "artifacts", manifest["artifact"])
    except (OSError, ArtifactError, ValueError, KeyError, TypeError):
        return None  # not usable: the task is repeated
    return manifest

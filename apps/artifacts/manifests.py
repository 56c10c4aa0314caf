"""Manifests: the record a site keeps beside an update, and the identity of a training task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from apps.artifacts.store import Artifact, verify
from apps.base.errors import ArtifactError
from apps.base.files import write_json


class Manifest(TypedDict):
    """What a site tells about one finished training task; times in seconds, ``started``/``ended`` since 1970."""

    task_id: str
    code_version: str
    site: str
    round: int
    base: str  # SHA-256 of the model that training started from
    artifact: Artifact  # the update
    store: str  # the folder at the site where it lies
    steps_done: int
    steps_asked: int
    samples: int  # samples used in these steps
    shard_samples: int  # samples the site owns: the weight of a mean by samples
    tokens: int
    loss_first: float
    loss_last: float
    train_s: float  # like steps, tokens and losses, over all attempts
    attempts: int  # how often the task was begun: 1 where nothing came between
    load_s: float
    tokens_per_s: float
    padding: float  # share of positions that were padding
    optimizer: str  # "fresh", "carried", or "lost" when asked for and not found
    started: float
    ended: float
    reused: bool  # True when the answer came from an earlier attempt


def manifest_path(root: Path, task_id: str) -> Path:
    return root / "manifests" / f"{task_id}.json"


def write_manifest(root: Path, manifest: Manifest) -> None:
    write_json(manifest_path(root, manifest["task_id"]), manifest)


def find_manifest(root: Path, task_id: str) -> Manifest | None:
    """The manifest of a task that this site has finished, if its update is still there and whole."""
    try:
        manifest: Manifest = json.loads(manifest_path(root, task_id).read_text())
        verify(root / "artifacts", manifest["artifact"])
    except (OSError, ArtifactError, ValueError, KeyError, TypeError):
        return None  # nothing usable: the task is done again
    return manifest

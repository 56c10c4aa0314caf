"""Parsl apps of the server: the first model, and the final model as users load it."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from apps.artifacts.store import artifact_path, read_header, sha256_file, verify
from apps.artifacts.traffic import rounded_copy
from apps.artifacts.update_checks import change_norm
from apps.base.errors import ArtifactError, UserMistake, placed
from apps.base.files import cannot_write
from apps.base.identity import Place
from apps.base.versions import require_same_code
from apps.models.model import ModelSpec, sends_bfloat16
from apps.models.streamed import write_final_model, write_first_model


class ServerWork(TypedDict):
    """Settings of the server that stay the same over a campaign, in plain values."""

    store: str  # the server's folder of artifacts
    model: ModelSpec
    threads: int
    code_version: str


def prepare(place: Place, work: ServerWork) -> dict[str, Any]:
    """Make the model that round 1 starts from, and count its parameters.

    Raises:
        UserMistake: the model has values that are not finite.

    Returns:
        ``artifact`` and ``store`` of the model, ``norm``: its L2 norm, ``sent``: the copy of it that travels (None:
        itself), ``full_nbytes`` of all weights, ``frozen`` fingerprint of the base weights, ``parameters``,
        ``trainable``, ``started`` and ``ended`` (UNIX seconds).
    """
    import torch

    started = time.time()
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        first = write_first_model(work["model"], work["store"])
        norm = _norm(artifact_path(work["store"], first.artifact))
        sent = rounded_copy(work["store"], first.artifact) if sends_bfloat16(work["model"]) else None
    return {
        "artifact": first.artifact,
        "norm": norm,
        "sent": sent,
        "store": work["store"],
        "full_nbytes": first.full_nbytes,
        "frozen": first.frozen,
        "parameters": first.parameters,
        "trainable": first.trainable,
        "started": started,
        "ended": time.time(),
    }


def _norm(path: Path) -> float:
    """Return the L2 norm of a first model, or the root of its number of parameters if all of them are zero."""
    header = read_header(path)
    try:
        norm = change_norm(path, header, None, header)
    except ArtifactError as error:
        raise UserMistake(
            f"model.source: the model has {error.what}", remedy="Repair or choose another model"
        ) from None
    return norm or math.sqrt(sum(spec.numel for spec in header.values() if spec.floating))


def save_model(place: Place, work: ServerWork, final: dict[str, Any], folder: str) -> dict[str, Any]:
    """Write the final model as ``from_pretrained`` loads it; the folder appears whole or not at all.

    The result has the SHA-256 of each file in ``files``.

    Args:
        place: the server and the last round.
        work: what stays the same for the server over a campaign.
        final: the result that carries the final model.
        folder: where it goes; an older folder there is replaced.
    """
    import torch

    started = time.time()
    target = Path(folder)
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        path = verify(work["store"], final["artifact"])
        _replace_folder(target, lambda unfinished: write_final_model(work["model"], path, unfinished))
        files = {str(path.relative_to(target)): sha256_file(path) for path in target.rglob("*") if path.is_file()}
    return {
        "artifact": final["artifact"],
        "folder": str(target),
        "files": files,
        "started": started,
        "ended": time.time(),
    }


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then move it there, so that a whole folder is there at every instant.

    Raises:
        StorageError: it cannot be written; the folder that was there is kept.
    """
    from safetensors import SafetensorError

    unfinished, old = target.with_name(target.name + ".part"), target.with_name(target.name + ".old")
    try:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write(unfinished)
        if target.exists():
            os.replace(target, old)
        os.replace(unfinished, target)
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error) from error
    finally:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)

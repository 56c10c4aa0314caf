"""Write the result of a training at a site: the update, and the files that the next training continues with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.store import Artifact, Header, TensorSpec, artifact_path, read_header
from apps.artifacts.traffic import DELTA, rounded_change
from apps.base.errors import ArtifactError
from apps.base.files import inside
from apps.models.model import Model, sends_bfloat16
from apps.models.sharding import copy_from_file
from apps.ranks.process_group import ProcessGroup
from apps.training.task import Task

if TYPE_CHECKING:
    from torch import Tensor

OPTIMIZER, LEFT_OVER = "optimizer", "left_over"  # folders at a site
logger = logging.getLogger(__name__)


def write_update(task: Task, group: ProcessGroup, model: Model) -> Artifact | None:
    """Write the trained tensors, or their changes in bfloat16, where they leave the site; all ranks take part.

    Args:
        task: that was trained.
        group: the ranks.
        model: after training.

    Returns:
        The artifact; None at the ranks that do not write.
    """
    if not sends_bfloat16(task.work["model"]):
        return group.write(task.out, model.trained, "update")
    changes, rest = _changes(task, artifact_path(task.store, task.base["artifact"]), model)
    artifact = group.write(task.out, changes, DELTA)
    keep(task, group, LEFT_OVER, rest, task.request.get("left_over_from"))
    return artifact


def _changes(task: Task, base: Path, model: Model) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the changes of the floating tensors, and what rounding leaves over of them."""
    header, before = read_header(base), _left_over(task)
    changes: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in model.trained.items():
        if tensor.is_floating_point():
            start = _read_like(tensor, base, header[name])
            last = _read_like(tensor, before[0], before[1][name]) if before else None
            changes[name], rest[name] = rounded_change(tensor, start, last)
    return changes, rest


def _read_like(tensor: Tensor, path: Path, spec: TensorSpec) -> Tensor:
    """Return a tensor of a file, on the device of another one and sharded in the same way."""
    import torch

    with torch.no_grad():
        found = torch.empty_like(tensor, dtype=torch.float32)
        copy_from_file(found, path, spec)
    return found


def _left_over(task: Task) -> tuple[Path, Header] | None:
    """Return the file of what the site's last change has left over, or None."""
    last = task.request.get("left_over_from")
    if last is None:
        return None
    path = inside(task.root, LEFT_OVER, f"{last}.safetensors")
    try:
        return path, read_header(path)
    except ArtifactError:
        logger.warning("%s is missing or damaged: the rounding error of the last update is lost", path)
        return None


def keep(task: Task, group: ProcessGroup, kind: str, tensors: Mapping[str, Tensor], before: str | None) -> None:
    """Save tensors under the task's id for the site's next training; all ranks take part.

    Of the older files only that one is kept which this task began with, for another attempt at it.

    Args:
        task: that was trained.
        group: the ranks.
        kind: ``OPTIMIZER`` or ``LEFT_OVER``.
        tensors: by name.
        before: task that this one continued.
    """
    folder = inside(task.root, kind)
    artifact = group.write(folder, tensors, kind)
    if artifact is None:
        return
    os.replace(artifact_path(folder, artifact), folder / f"{task.id}.safetensors")
    for path in folder.glob("*.safetensors") if before else ():
        if path.stem not in (task.id, before):
            path.unlink()

"""Models and updates in bfloat16 on the way, float32 at both ends.

The server keeps the model in float32 and sends a rounded copy of it. A site trains float32 weights that start from this
copy, and sends their change, rounded to bfloat16: the error is relative to the change, not to the weight. What rounding
leaves over is kept at the site and added to its next change (error feedback: Seide et al., Interspeech 2014;
Karimireddy et al., arXiv 1901.09847). The server adds the changes to the float32 model that the copy was made from.

A change has the kind ``DELTA``. Integer tensors are not in it: the server keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.store import Artifact, Shapes, artifact_path, layout, read_header, verify, write_artifact
from apps.artifacts.streams import raw_pieces
from apps.artifacts.weighted_sum import Term

if TYPE_CHECKING:
    from torch import Tensor

DELTA = "delta"  # kind of an artifact that holds changes


def rounded_copy(store: str | Path, artifact: Artifact) -> Artifact:
    """Write a copy of a model with its floating tensors in bfloat16, in pieces.

    Args:
        store: folder of the model and of the copy.
        artifact: the model.

    Raises:
        ArtifactError: the model cannot be read.
        ModelNotFinite: a value is too large for bfloat16.
        StorageError: the store cannot be written.
    """
    import torch

    path = artifact_path(store, artifact)
    header = read_header(path)
    shapes: Shapes = {n: ("BF16" if spec.floating else spec.dtype, spec.shape) for n, spec in header.items()}
    content = ((name, raw_pieces(path, header[name], torch.bfloat16)) for name in layout(shapes)[1])
    return write_artifact(store, shapes, content, artifact["kind"], finite=True)


def rounded_change(tensor: Tensor, base: Tensor, left_over: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the change of a tensor in bfloat16, and what rounding leaves over, in bfloat16 too.

    Args:
        tensor: after training, whole or a part of it.
        base: the same part before training.
        left_over: of the site's last change; None: nothing.
    """
    import torch

    exact = tensor.detach().float() - base.float()
    if left_over is not None:
        exact = exact + left_over.float()
    change = exact.to(torch.bfloat16)
    return change, (exact - change.float()).to(torch.bfloat16)


def model_terms(store: str | Path, terms: Sequence[tuple[Mapping[str, Any], float]]) -> list[Term]:
    """Return the files and coefficients of a weighted sum of models and changes.

    A change counts as the model it was made from, in float32, plus the change. Coefficients of one file are added.

    Args:
        store: folder of all artifacts.
        terms: (result with ``artifact``, and with ``master`` for a change; coefficient).

    Raises:
        ArtifactError: a file is incomplete or altered.
    """
    found: dict[Path, float] = {}
    for result, weight in terms:  # models first: the first file names the type of the sum
        master = result["master"] if is_delta(result) else result["artifact"]
        path = artifact_path(store, master) if artifact_path(store, master) in found else verify(store, master)
        found[path] = found.get(path, 0.0) + weight
    for result, weight in terms:
        if is_delta(result):
            path = verify(store, result["artifact"])
            found[path] = found.get(path, 0.0) + weight
    return list(found.items())


def is_delta(result: Mapping[str, Any]) -> bool:
    """Return whether a task's result is a change instead of a model."""
    kind: str = result["artifact"]["kind"]
    return kind == DELTA

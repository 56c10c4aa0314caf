"""Tensors of which each rank holds a part: the part that a rank reads from a file, or takes of a whole tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.store import TensorSpec
from apps.artifacts.streams import read_tensor

if TYPE_CHECKING:
    import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return True for a tensor of which each rank holds a part."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_rows(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the range of rows that this rank holds of a sharded tensor: as FSDP2 splits it, by ``torch.chunk``."""
    sharded: Any = tensor
    rows = sharded.shape[0]
    chunk = -(-rows // sharded.device_mesh.size())
    start = min(rows, sharded.device_mesh.get_local_rank() * chunk)
    return start, min(rows, start + chunk)


def placed_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Put a whole tensor on the device of another one, sharded in the same way; without communication.

    Args:
        whole: a tensor that every rank has.
        like: the tensor whose device and sharding are used.
    """
    if not is_sharded(like):
        return whole.to(like.device)
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    local = sharded.to_local()
    start, stop = own_rows(like)
    part = whole[start:stop].to(local.device, copy=True)
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def copy_from_file(tensor: torch.Tensor, path: Path, spec: TensorSpec) -> None:
    """Copy a tensor of a file into one of the same shape; of a sharded one only the rows of this rank are read.

    Must be called without gradients.
    """
    if is_sharded(tensor):
        local: Any = tensor
        local.to_local().copy_(read_tensor(path, spec, own_rows(tensor)))
    else:
        tensor.copy_(read_tensor(path, spec))

"""The ranks that train one model together, and what they tell each other. Alone, one rank is a team of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.store import DTYPES, Artifact, layout, raw_bytes, write_artifact
from apps.base.errors import ArtifactError

if TYPE_CHECKING:
    import torch


class ProcessGroup:
    """Ranks 0 to ``size`` - 1. With more than one, torch.distributed must be running, with gloo for the CPU.

    Attributes:
        device: the torch device of this rank.
    """

    def __init__(self, device: str, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sum over the ranks of each value; the same bits at every rank."""
        if self.size == 1:
            return list(values)
        import torch

        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def told(self, value: Any) -> Any:
        """What rank 0 has as ``value``, a plain one."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensor of each rank; all on the CPU and of one shape."""
        if self.size == 1:
            return [tensor]
        import torch

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return parts

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(0.0)

    def write(self, store: Path, tensors: Mapping[str, torch.Tensor], kind: str) -> Artifact | None:
        """Stream tensors, sharded or not, into an artifact of rank 0; one whole tensor in memory at a time.

        Every rank must call this with the same names. Returns None at the other ranks.

        Raises:
            ArtifactError: a tensor of a type that has no place in a file.
            StorageError: the store cannot be written.
        """
        shapes = {name: (_type_name(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
        content = _whole((name, tensors[name]) for name in layout(shapes)[1])
        if self.writes:
            return write_artifact(store, shapes, ((name, [raw_bytes(tensor)]) for name, tensor in content), kind)
        for _ in content:
            pass  # takes part in the gathering
        return None


def _type_name(name: str, tensor: torch.Tensor) -> str:
    for file_name, (torch_name, _) in DTYPES.items():
        if str(tensor.dtype) == f"torch.{torch_name}":
            return file_name
    raise ArtifactError(f"tensor {name!r} has the type {tensor.dtype}")


def _whole(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        value: Any = tensor.detach()
        yield name, value.full_tensor() if is_sharded(value) else value


def is_sharded(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def placed_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another, and sharded as that one is; no rank asks another for it."""
    value: Any = like
    if not is_sharded(like):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    local = whole.to(value.to_local().device)
    return distribute_tensor(local, value.device_mesh, value.placements, src_data_rank=None)

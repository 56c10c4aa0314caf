"""The ranks that train one model together, and how they exchange values; a single rank is a group of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.store import Artifact, layout, raw_bytes, shapes_of, write_artifact
from apps.models.sharding import is_sharded

if TYPE_CHECKING:
    import torch


class ProcessGroup:
    """Ranks 0 to ``size`` - 1. With more than one, torch.distributed must be running, with gloo for the CPU.

    Attributes:
        device: the torch device of this rank.
        rank: number of this rank.
        size: number of ranks.
    """

    def __init__(self, device: str, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size

    @property
    def writes(self) -> bool:
        """True for the one rank that writes files."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Return the sum over the ranks of each value; the same bits at every rank."""
        if self.size == 1:
            return list(values)
        import torch

        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def broadcast(self, value: Any) -> Any:
        """Return the value that rank 0 passes, a plain one; it is sent as JSON."""
        if self.size == 1:
            return value
        import torch

        text = torch.tensor(list(json.dumps(value).encode()) if self.writes else [], dtype=torch.uint8)
        nbytes = torch.tensor([text.numel()])
        torch.distributed.broadcast(nbytes, src=0)
        if not self.writes:
            text = torch.empty(int(nbytes), dtype=torch.uint8)
        torch.distributed.broadcast(text, src=0)
        return json.loads(bytes(text.tolist()))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor of each rank; all on the CPU and of one shape."""
        if self.size == 1:
            return [tensor]
        import torch

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return parts

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.total(0.0)

    def write(self, store: Path, tensors: Mapping[str, torch.Tensor], kind: str) -> Artifact | None:
        """Stream tensors, sharded or not, into an artifact of rank 0; one whole tensor in memory at a time.

        Every rank must call this with the same names.

        Returns:
            The artifact; None at the other ranks.

        Raises:
            ArtifactError: a tensor has a type that files cannot hold.
            StorageError: the store cannot be written.
        """
        shapes = shapes_of(tensors)
        content = self._whole((name, tensors[name]) for name in layout(shapes)[1])
        if self.writes:
            return write_artifact(store, shapes, ((name, [raw_bytes(tensor)]) for name, tensor in content), kind)
        for _ in content:
            pass  # takes part in the gathering
        return None

    def _whole(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield whole tensors at the rank that writes; the others give it their rows and yield what they have."""
        for name, tensor in tensors:
            value = tensor.detach()
            yield name, self._gather_rows(value) if is_sharded(value) else value

    def _gather_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a sharded tensor whole at the rank that writes; to the others nothing is sent."""
        import torch

        sharded: Any = tensor
        local, rows = sharded.to_local(), sharded.shape[0]
        chunk = -(-rows // self.size)  # the last ranks may have fewer rows, or none
        own = local.new_zeros((chunk, *local.shape[1:]))
        own[: local.shape[0]] = local
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.writes else None
        torch.distributed.gather(own, parts, dst=0)
        return torch.cat(parts)[:rows] if parts else local

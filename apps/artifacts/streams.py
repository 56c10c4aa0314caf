"""Passes over the tensors of files, piece by piece: the memory needed is a piece, not a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.store import DTYPES, TensorSpec
from apps.base.errors import ArtifactError

if TYPE_CHECKING:
    import torch

PIECE = 1 << 19  # elements; a float32 piece is 2 MiB: few enough calls, and still in a core's cache


def piece_ranges(numel: int) -> Iterator[tuple[int, int]]:
    """(start, stop) element ranges that cover a tensor."""
    for start in range(0, numel, PIECE):
        yield start, min(start + PIECE, numel)


class PieceReader:
    """Reads ranges of elements into one buffer per type, which the next read of that type overwrites.

    Files are read, not mapped, and opened for each piece: mapped pages of every input would count as
    memory of this process, and hundreds of inputs would meet the limit of open files.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}

    def read(self, path: str | Path, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a tensor, flat, in the file's own type.

        Raises:
            ArtifactError: the file cannot be read, or has become shorter since its header was read.
        """
        import torch

        torch_name, width = DTYPES[spec.dtype]
        if spec.dtype not in self.buffers:
            self.buffers[spec.dtype] = torch.empty(PIECE, dtype=getattr(torch, torch_name))
        piece = self.buffers[spec.dtype][: stop - start]
        raw = piece.view(torch.uint8).numpy().data
        try:
            _fill(raw, path, spec.begin + start * width)
        except OSError as error:  # told apart here from a result that cannot be written
            raise ArtifactError(f"cannot read: {error.strerror or error}", file=str(path)) from error
        return piece


def _fill(buffer: memoryview, path: str | Path, offset: int) -> None:
    """The bytes of a file from ``offset`` on, as many as the buffer holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        filled = 0
        while filled < buffer.nbytes:
            count = os.preadv(descriptor, [buffer[filled:]], offset + filled)
            if count == 0:
                raise ArtifactError("file ended early", file=str(path))
            filled += count
    finally:
        os.close(descriptor)


def read_tensor(path: str | Path, spec: TensorSpec) -> torch.Tensor:
    """One whole tensor in memory."""
    import torch

    tensor = torch.empty(spec.shape, dtype=getattr(torch, DTYPES[spec.dtype][0]))
    flat, reader = tensor.reshape(-1), PieceReader()
    for start, stop in piece_ranges(spec.numel):
        flat[start:stop] = reader.read(path, spec, start, stop)
    return tensor

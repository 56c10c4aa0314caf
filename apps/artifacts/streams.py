"""Reading the tensors of files in pieces: the memory needed is that of a piece, not of a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.store import DTYPES, TensorSpec, raw_bytes
from apps.base.errors import ArtifactError
from apps.base.files import cannot_read

if TYPE_CHECKING:
    import torch

PIECE = 1 << 19  # elements; a float32 piece is 2 MiB: few enough calls, and still in a core's cache


def piece_ranges(numel: int, width: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) element ranges that cover a tensor.

    Args:
        numel: elements of the tensor.
        width: elements of a range; None: a piece.
    """
    step = width or PIECE
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


class PieceReader:
    """Reader of element ranges with one buffer per type, which the next read of that type overwrites.

    Files are read, not mapped, and opened for each piece: mapped pages of every input would count as
    memory of this process, and hundreds of inputs would exceed the limit of open files.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}

    def read(self, path: str | Path, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Read elements [start, stop) of a tensor, flat, in the type they have in the file.

        Raises:
            ArtifactError: the file cannot be read, or is shorter than its header says.
        """
        import torch

        torch_name, width = DTYPES[spec.dtype]
        if spec.dtype not in self.buffers:
            self.buffers[spec.dtype] = torch.empty(PIECE, dtype=getattr(torch, torch_name))
        piece = self.buffers[spec.dtype][: stop - start]
        raw = piece.view(torch.uint8).numpy().data
        try:
            _fill(raw, path, spec.begin + start * width)
        except OSError as error:  # here, so that it is not taken for a result that cannot be written
            raise cannot_read(path, error) from error
        return piece


def _fill(buffer: memoryview, path: str | Path, offset: int) -> None:
    """Fill a buffer with the bytes of a file from ``offset`` on."""
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


def raw_pieces(path: str | Path, spec: TensorSpec, floating: torch.dtype | None = None) -> Iterator[memoryview]:
    """Yield the bytes of one tensor, piece by piece; each is valid until the next is taken.

    Args:
        path: of the file.
        spec: of the tensor in it.
        floating: type that a floating-point tensor is converted to; None: that of the file.
    """
    reader, convert = PieceReader(), spec.floating and floating is not None
    for start, stop in piece_ranges(spec.numel):
        piece = reader.read(path, spec, start, stop)
        yield raw_bytes(piece.to(floating) if convert else piece)


def read_tensor(path: str | Path, spec: TensorSpec, rows: tuple[int, int] | None = None) -> torch.Tensor:
    """Read one whole tensor into memory, or a range of its rows.

    Args:
        path: of the file.
        spec: of the tensor in it.
        rows: first row, and the one after the last; None: all.
    """
    import torch

    shape, skipped = spec.shape, 0
    if rows is not None:
        row = spec.numel // max(1, spec.shape[0])
        shape, skipped = (rows[1] - rows[0], *spec.shape[1:]), rows[0] * row
    tensor = torch.empty(shape, dtype=getattr(torch, DTYPES[spec.dtype][0]))
    flat, reader = tensor.reshape(-1), PieceReader()
    for start, stop in piece_ranges(flat.numel()):
        flat[start:stop] = reader.read(path, spec, skipped + start, skipped + stop)
    return tensor

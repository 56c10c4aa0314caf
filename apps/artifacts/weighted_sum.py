"""Weighted sums of models, streamed over files.

One float32 accumulator of the size of a piece, updates read one after another: peak memory grows neither with the
number of sites nor with the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.finite import require_range
from apps.artifacts.store import (
    Artifact,
    Header,
    TensorSpec,
    layout,
    raw_bytes,
    read_header,
    torch_type,
    write_artifact,
)
from apps.artifacts.streams import PieceReader, piece_ranges
from apps.base.errors import ArtifactError

if TYPE_CHECKING:
    import torch

Term = tuple[Path, float]  # a file of tensors and its coefficient


def weighted_sum(terms: Sequence[Term], store: str | Path, kind: str = "model") -> Artifact:
    """Write ``sum_k c_k x_k`` over files of equal names, shapes and types; the type of each tensor is kept.

    Floating tensors are summed in float32 (float64 stays float64) in the order of ``terms``, so that the
    same input gives the same bits. Integer tensors, which have no fractions, take the weighted mean rounded
    to the nearest integer; boolean ones the value that has at least half of the weight.

    Args:
        terms: (path, coefficient); for a mean the coefficients sum to one.
        store: folder of the result.
        kind: of the result, for people.

    Raises:
        ArtifactError: the files do not hold the same tensors.
        ModelNotFinite: the sum has values that are not finite in its type.
    """
    header = common_header([path for path, _ in terms])
    shapes = {name: (spec.dtype, spec.shape) for name, spec in header.items()}
    headers = [read_header(path) for path, _ in terms]
    content = ((name, _summed(terms, [h[name] for h in headers])) for name in layout(shapes)[1])
    return write_artifact(store, shapes, content, kind, finite=True)


def common_header(paths: Sequence[Path]) -> Header:
    """Return the header that all files share.

    Raises:
        ArtifactError: names the first file and tensor that differ.
    """
    first = read_header(paths[0])
    for path in paths[1:]:
        other = read_header(path)
        if first.keys() != other.keys():
            odd = sorted(first.keys() ^ other.keys())[0]
            raise ArtifactError(f"tensor {odd!r} is not in both {paths[0].name} and this file", file=str(path))
        for name, spec in first.items():
            if not spec.like(other[name]):
                raise ArtifactError(
                    f"tensor {name!r} is {other[name].dtype}{list(other[name].shape)}"
                    f" instead of {spec.dtype}{list(spec.shape)}",
                    file=str(path),
                )
    return first


def _summed(terms: Sequence[Term], specs: Sequence[TensorSpec]) -> Iterator[memoryview]:
    """Yield the raw bytes of one summed tensor, piece by piece."""
    reader = PieceReader()
    for start, stop in piece_ranges(specs[0].numel):
        yield raw_bytes(combined_piece(terms, specs, reader, start, stop))


def combined_piece(
    terms: Sequence[Term], specs: Sequence[TensorSpec], reader: PieceReader, start: int, stop: int, narrow: bool = True
) -> torch.Tensor:
    """Return elements [start, stop) of ``sum_k c_k x_k``.

    Args:
        terms: (path, coefficient).
        specs: the tensor in each of the files.
        reader: with its buffers.
        start: first element.
        stop: end of the elements.
        narrow: convert to the tensor's own type; else the type of the accumulator is kept.
    """
    import torch

    total = torch.zeros(stop - start, dtype=_accumulator(torch_type(specs[0])))
    for (path, coefficient), spec in zip(terms, specs, strict=True):
        total.add_(reader.read(path, spec, start, stop), alpha=coefficient)
    return narrowed(total, specs[0]) if narrow else total


@dataclass(frozen=True)
class Inputs:
    """Files to combine, and a base model with the tensors that they lack."""

    terms: Sequence[Term]
    headers: Sequence[Header]  # of the terms
    base: Path
    header: Header  # of the base
    combined: frozenset[str]  # tensors that all terms have; the others are taken from the base

    def pieces(self, name: str) -> Iterator[memoryview]:
        """Yield the raw bytes of one tensor of the combination."""
        if name in self.combined:
            return _summed(self.terms, [header[name] for header in self.headers])
        return _summed([(self.base, 1.0)], [self.header[name]])


def open_inputs(terms: Sequence[Term], base: Path) -> Inputs:
    """Read the headers of files to combine and check them against the base.

    Args:
        terms: (path, coefficient).
        base: path of a model with all tensors.

    Raises:
        ArtifactError: a tensor is not in the base, or has another shape or type there; no tensor is in all files.
    """
    header, headers = read_header(base), [read_header(path) for path, _ in terms]
    for (path, _), other in zip(terms, headers, strict=True):
        for name, spec in other.items():
            if name not in header or not _addable(spec, header[name]):
                raise ArtifactError(
                    f"tensor {name!r} is not in {base.name}, or has another shape there", file=str(path)
                )
    combined = frozenset(header).intersection(*headers)
    if not combined:
        raise ArtifactError(f"no tensor of {base.name} is in all of the {len(terms)} files to combine", file=str(base))
    return Inputs(terms, headers, base, header, combined)


def _addable(term: TensorSpec, base: TensorSpec) -> bool:
    """Return whether a term's tensor can be added: of the same type, or a bfloat16 change of a float32 model."""
    return term.like(base) or (term.shape == base.shape and (term.dtype, base.dtype) == ("BF16", "F32"))


def affine_combination(terms: Sequence[Term], base: Path, store: str | Path, kind: str = "model") -> Artifact:
    """Write the weighted sum of models and updates; a tensor that not all files have is taken from ``base``.

    Args:
        terms: (path, coefficient); the coefficients sum to one, single ones may be negative.
        base: path of a model with all tensors.
        store: folder of the result.
        kind: of the result, for people.

    Raises:
        ArtifactError: the files do not fit the base.
        ModelNotFinite: the sum has values that are not finite in its type.
    """
    inputs = open_inputs(terms, base)
    shapes = {name: (spec.dtype, spec.shape) for name, spec in inputs.header.items()}
    content = ((name, inputs.pieces(name)) for name in layout(shapes)[1])
    return write_artifact(store, shapes, content, kind, finite=True)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    import torch

    exact = dtype == torch.float64 or not dtype.is_floating_point
    return torch.float64 if exact else torch.float32


def narrowed(total: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Return a sum in the type of a tensor: integers rounded to the nearest, booleans as at least half.

    Raises:
        ModelNotFinite: an integer type cannot hold the sum.
    """
    import torch

    dtype = torch_type(spec)
    if dtype.is_floating_point:
        return total.to(dtype)
    if dtype == torch.bool:
        return total >= 0.5
    rounded = total.round()
    require_range(rounded, dtype)
    return rounded.to(dtype)

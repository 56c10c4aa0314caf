"""The header of a safetensors file: types, shapes and positions of its tensors, read strictly.

A header may come from a site that means harm: whatever is in it, reading takes little time and memory, and a message
about it is short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_DIMENSIONS = 64  # of a tensor; torch has no more
LARGEST = 2**63 - 1  # size or offset; beyond, products become numbers of any length
SHOWN = 80  # characters of a name or a value in a message
DTYPES = {  # name in the file -> (name in torch, bytes an element)
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorSpec:
    """Type, shape and position of one tensor in a file; ``begin`` and ``end`` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * DTYPES[self.dtype][1]

    @property
    def floating(self) -> bool:
        """True for floating-point tensors."""
        return self.dtype in FLOATING

    def like(self, other: TensorSpec) -> bool:
        """Return True if another tensor has the same type and shape."""
        return self.dtype == other.dtype and self.shape == other.shape


Header = dict[str, TensorSpec]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (type as in ``DTYPES``, shape)


def parse_header(raw: bytes, data_start: int) -> Header:
    """Return the tensors that a header names; what the public library would not read is refused here too.

    Args:
        raw: the bytes of the header.
        data_start: position of the tensors in the file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: it is no such header.
    """
    entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repetition)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts")
    return {name: tensor_spec(entry, data_start) for name, entry in entries.items()}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("it names something twice")
    return entries


def shown(value: object) -> str:
    """Return what a file says as a message may show it: in ASCII, and not longer than a line."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def tensor_spec(entry: dict[str, Any], data_start: int) -> TensorSpec:
    """Return what an entry of a header says of a tensor."""
    (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
    if not isinstance(entry["shape"], list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a shape is no list of at most {MOST_DIMENSIONS} sizes")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"unknown tensor type {shown(entry['dtype'])}")
    if not all(type(n) is int and 0 <= n <= LARGEST for n in (*shape, begin, end)):
        raise ValueError("a size or an offset is not a whole number of zero or more, or is too large")
    spec = TensorSpec(entry["dtype"], shape, data_start + begin, data_start + end)
    if spec.end - spec.begin != spec.nbytes:
        raise ValueError("a tensor's offsets do not fit its shape")
    return spec

"""Finite values in what the server makes: a check of raw pieces on their way into a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from apps.base.errors import ModelNotFinite

if TYPE_CHECKING:
    import torch


def require_finite_piece(piece: memoryview | bytes, dtype: torch.dtype, name: str) -> None:
    """Refuse a piece of a floating-point tensor with a value that is not finite.

    Args:
        piece: raw values.
        dtype: their type.
        name: of the tensor.

    Raises:
        ModelNotFinite: names the tensor.
    """
    import torch

    if not len(piece):
        return
    low, high = torch.frombuffer(memoryview(piece), dtype=dtype).aminmax()  # a NaN is both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelNotFinite(f"values that are not finite in tensor {name!r}")


def require_range(total: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a sum that an integer type cannot hold; a conversion would wrap around.

    Raises:
        ModelNotFinite: a value is out of the type's range.
    """
    import torch

    limits = torch.iinfo(dtype)
    if total.numel() and not (float(total.min()) >= limits.min and float(total.max()) <= limits.max):
        raise ModelNotFinite(f"a sum that {str(dtype).removeprefix('torch.')} cannot hold")

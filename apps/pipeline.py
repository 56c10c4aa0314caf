"""The update pipeline: what happens to an update between training and sending.

A chain of pure functions over a stream of tensors. Stages that belong here clip, add noise, compress or mask;
what they change is undone or accounted for at the server. A campaign names its stages in order; none is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Stream = Iterator[tuple[str, "Tensor"]]
Stage = Callable[[Stream], Stream]


def run_pipeline(tensors: Iterable[tuple[str, Tensor]], stages: Sequence[Stage]) -> Stream:
    """The stream after all stages, one tensor in memory at a time."""
    stream: Stream = iter(tensors)
    for stage in stages:
        stream = stage(stream)
    return stream

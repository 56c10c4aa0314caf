"""``scaling.csv``: one row for each measured point, the only state of a scaling study."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.base.errors import UserMistake
from apps.base.files import write_text
from workflows.studies import tables


@dataclass(frozen=True)
class ScalingRow:
    """A point of the study; rates are of the whole site, ``low`` and ``high`` over the repeats.

    Attributes:
        devices: that train, over all nodes.
        sharding: with ``+ckpt`` and ``+offload`` if the plan has them.
        micro_batch: samples of a device in one pass.
        planned_bytes: of one device, by the memory plan; 0 if it was not checked.
        tokens_per_s: tokens without padding.
        code: version of the code that was measured.
    """

    site: str
    nodes: int
    devices: int
    sharding: str
    micro_batch: int
    samples_per_s: float
    low: float
    high: float
    tokens_per_s: float
    repeats: int
    planned_bytes: int
    code: str

    @property
    def key(self) -> tuple[str, int, int]:
        """Return site, nodes and devices."""
        return self.site, self.nodes, self.devices


@dataclass(frozen=True)
class Trained:
    """Samples, tokens and seconds of stepping of one training."""

    samples: int
    tokens: int
    seconds: float


def rates(short: Trained, long: Sequence[Trained]) -> list[tuple[float, float]]:
    """Return samples and tokens a second of each longer training, without the work of the shorter one.

    The difference leaves out the costs of the first steps: libraries that start, kernels that are chosen.

    Raises:
        UserMistake: a longer training took no longer, so that no rate can be computed.
    """
    if any(t.seconds <= short.seconds for t in long):
        raise UserMistake("more steps took less time: too short to be measured", remedy="Use more --steps")
    seconds = [t.seconds - short.seconds for t in long]
    return [
        ((t.samples - short.samples) / s, (t.tokens - short.tokens) / s) for t, s in zip(long, seconds, strict=True)
    ]


def summary(found: Sequence[tuple[float, float]]) -> dict[str, float | int]:
    """Return medians over the repeats, with the least and the largest rate of samples."""
    samples = [pair[0] for pair in found]
    return {
        "samples_per_s": statistics.median(samples),
        "low": min(samples),
        "high": max(samples),
        "tokens_per_s": statistics.median(pair[1] for pair in found),
        "repeats": len(found),
    }


def read_rows(path: Path) -> list[ScalingRow]:
    """Return the rows of an earlier study; none if there is no file. Raises UserMistake for another kind of file."""
    return tables.read_rows(path, ScalingRow, "scaling")


def write_rows(path: Path, rows: Iterable[ScalingRow]) -> None:
    """Write the table whole or not at all, in the order of sites and sizes."""
    write_text(path, tables.csv_of(ScalingRow, sorted(rows, key=lambda row: row.key)))

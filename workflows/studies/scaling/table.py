"""``scaling.csv``: one row for each measured point, the only memory of a scaling study."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.base.files import write_text


@dataclass(frozen=True)
class ScalingRow:
    """A point of the study; rates are of the whole site, ``low`` and ``high`` over the repeats.

    Attributes:
        devices: that train, over all nodes.
        sharding: with ``+ckpt`` and ``+offload`` where the plan says so.
        micro_batch: samples of a device in one pass.
        planned_bytes: of one device, by the memory plan; 0 where it was not checked.
        tokens_per_s: real tokens, padding not counted.
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
        return self.site, self.nodes, self.devices


@dataclass(frozen=True)
class Trained:
    """What one training told: its samples, tokens and seconds of stepping."""

    samples: int
    tokens: int
    seconds: float


def rates(short: Trained, long: Sequence[Trained]) -> list[tuple[float, float]]:
    """Samples and tokens a second of each longer training, without what the shorter one took too.

    The difference leaves out what only the first steps cost: libraries that start, kernels that are chosen.

    Raises:
        UserMistake: the longer trainings took no longer; there is nothing to be told from that.
    """
    if any(t.seconds <= short.seconds for t in long):
        raise UserMistake("more steps took less time: too short to be measured", remedy="Ask for more --steps")
    seconds = [t.seconds - short.seconds for t in long]
    return [
        ((t.samples - short.samples) / s, (t.tokens - short.tokens) / s) for t, s in zip(long, seconds, strict=True)
    ]


def summary(found: Sequence[tuple[float, float]]) -> dict[str, float | int]:
    """Medians over the repeats, with the least and the most of the samples."""
    samples = [pair[0] for pair in found]
    return {
        "samples_per_s": statistics.median(samples),
        "low": min(samples),
        "high": max(samples),
        "tokens_per_s": statistics.median(pair[1] for pair in found),
        "repeats": len(found),
    }


def read_rows(path: Path) -> list[ScalingRow]:
    """The rows of an earlier study; none where there is no file.

    Raises:
        UserMistake: the file is of another kind.
    """
    if not path.exists():
        return []
    kinds: dict[str, Any] = {"int": int, "float": float, "str": str}
    try:
        with open(path, newline="") as stream:
            return [
                ScalingRow(**{f.name: kinds[str(f.type)](record[f.name]) for f in fields(ScalingRow)})
                for record in csv.DictReader(stream)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserMistake(f"{path} is no table of a scaling study: {error}", remedy="Move it away") from None


def write_rows(path: Path, rows: Iterable[ScalingRow]) -> None:
    """Write the table whole or not at all, in the order of sites and sizes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(ScalingRow)], lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda r: r.key):
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    write_text(path, text.getvalue())

"""Expected times of smaller files: the same model at other precisions, and adapters instead of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.models.adapter import AdapterSpec
from workflows.console.units import bytes_text, seconds_text
from workflows.planning.memory.model import count, known_config
from workflows.studies.tables import terminal_table
from workflows.studies.transfers.line import LinearFit
from workflows.studies.transfers.models import StudyModel, file_bytes
from workflows.studies.transfers.rows import RETURN, SEND

if TYPE_CHECKING:
    from rich.table import Table

RANKS = (64, 16, 8)
ADAPTER_BYTES = 4  # per parameter: peft keeps adapters in float32, whatever the model is in
PRECISION_NAMES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class Saving:
    """A representation of a model that could be sent.

    Attributes:
        name: for the user.
        nbytes: of the file.
        seconds: site -> expected time of a round trip.
        beyond: True if the file is smaller or larger than the measured ones.
    """

    name: str
    nbytes: int
    seconds: Mapping[str, float]
    beyond: bool


def savings(model: StudyModel, lines: Mapping[tuple[str, str], LinearFit | None]) -> list[Saving]:
    """Return the representations of a model, large files first.

    Args:
        model: any; adapters are included if its shape is published, for all linear layers of its decoder.
        lines: (site, direction) -> the fitted line; a site without one in both directions is left out.
    """
    ways = {name: file_bytes(model, dtype) for dtype, name in PRECISION_NAMES.items()}
    if model.source:
        ways |= {f"LoRA, rank {rank}": adapter_bytes(model.source, rank) for rank in RANKS}
    trips = {site: both for site in dict.fromkeys(site for site, _ in lines) if (both := _both(lines, site))}
    smallest = max((line.smallest for both in trips.values() for line in both), default=0)
    largest = min((line.largest for both in trips.values() for line in both), default=math.inf)
    return [
        Saving(
            name,
            nbytes,
            {site: sum(line.seconds(nbytes) for line in both) for site, both in trips.items()},
            not smallest <= nbytes <= largest,
        )
        for name, nbytes in ways.items()
    ]


def _both(lines: Mapping[tuple[str, str], LinearFit | None], site: str) -> tuple[LinearFit, LinearFit] | None:
    there, back = lines.get((site, SEND)), lines.get((site, RETURN))
    return (there, back) if there and back else None


def adapter_bytes(source: str, rank: int) -> int:
    """Return the bytes of the tensors of a LoRA adapter without its header, some hundredth of a percent."""
    from transformers import AutoConfig

    values = known_config(source)
    assert values is not None, f"{source} is not in the table"
    spec = AdapterSpec(method="fedit", rank=rank, alpha=2.0 * rank, dropout=0.0, targets="all-linear", last_layers=None)
    return ADAPTER_BYTES * count(AutoConfig.for_model(**values), spec).trained


def as_table(model: StudyModel, ways: list[Saving]) -> Table:
    """Return the table for the terminal."""
    full = next(way.nbytes for way in ways if way.name == "bf16")
    sites = list(ways[0].seconds)
    rows = []
    for way in ways:
        marks = [seconds_text(way.seconds[site]) + " *" * way.beyond for site in sites]
        rows.append([way.name, bytes_text(way.nbytes), f"{100 * way.nbytes / full:.3g} %", *marks])
    title = f"{model.name}: expected trip there and back"
    table = terminal_table(title, ["sent as", "bytes", "of bf16", *sites], 1, [((), rows)])
    if any(way.beyond for way in ways):
        table.caption = "* outside of the sizes that were measured"
    return table

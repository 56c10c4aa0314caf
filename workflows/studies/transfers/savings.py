"""What smaller files save: the same model at other precisions, and adapters in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.console.units import bytes_text, seconds_text
from workflows.studies.transfers.line import LinearFit
from workflows.studies.transfers.models import StudyModel, file_bytes
from workflows.studies.transfers.rows import RETURN, SEND

if TYPE_CHECKING:
    from rich.table import Table

RANKS = (64, 16, 8)
ADAPTER_BYTES = 4  # of a parameter: peft keeps adapters in float32, whatever the model is in
PRECISION_NAMES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}


@dataclass(frozen=True)
class Saving:
    """A way to send a model.

    Attributes:
        name: for people.
        nbytes: of the file.
        seconds: site -> expected time of a trip there and back.
        beyond: the file is smaller or larger than those that were measured.
    """

    name: str
    nbytes: int
    seconds: Mapping[str, float]
    beyond: bool


def savings(model: StudyModel, lines: Mapping[tuple[str, str], LinearFit | None]) -> list[Saving]:
    """Ways to send a model, large files first.

    Args:
        model: any; adapters are counted where its shape is published, for all linear layers of its decoder.
        lines: (site, direction) -> the fitted line; a site without one for both directions is left out.
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
    """Bytes of the tensors of a LoRA adapter; the header, some hundredth of a percent, is not counted."""
    from transformers import AutoConfig

    from apps.models.model import AdapterSpec
    from workflows.planning.memory.model import count, known_config

    values = known_config(source)
    assert values is not None, f"{source} is not in the table"
    spec = AdapterSpec(method="fedit", rank=rank, alpha=2.0 * rank, dropout=0.0, targets="all-linear", last_layers=None)
    return ADAPTER_BYTES * count(AutoConfig.for_model(**values), spec).trained


def as_table(model: StudyModel, ways: list[Saving]) -> Table:
    from rich.table import Table

    full = next(way.nbytes for way in ways if way.name == "bf16")
    table = Table(title=f"{model.name}: expected trip there and back", title_justify="left")
    table.add_column("sent as", no_wrap=True)
    sites = list(ways[0].seconds)
    for name in ("bytes", "of bf16", *sites):
        table.add_column(name, justify="right", no_wrap=True)
    for way in ways:
        marks = [seconds_text(way.seconds[site]) + " *" * way.beyond for site in sites]
        table.add_row(way.name, bytes_text(way.nbytes), f"{100 * way.nbytes / full:.3g} %", *marks)
    if any(way.beyond for way in ways):
        table.caption = "* outside of the sizes that were measured"
    return table

"""One measured transfer: a row of the study's table."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apps.base.errors import UserMistake

if TYPE_CHECKING:
    pass


MB = 1e6


Direction = Literal["send", "return"]


SEND: Direction = "send"


RETURN: Direction = "return"


DIRECTIONS = (SEND, RETURN)


Key = tuple[str, str, str, str, int, int]


@dataclass(frozen=True)
class TransferRow:
    """One transfer.

    Attributes:
        carrier: copy, shared or globus.
        direction: send (to the site) or return.
        nbytes: of the file.
        seconds: that it took, its wait in the service's queue not counted.
        queued_s: that wait.
        rate_mb_s: nbytes by seconds, in 10^6 bytes a second; NaN, in the file an empty cell, of one that was too
            short for its clock.
        faults: of which the service has told; it mends them by itself.
    """

    site: str
    carrier: str
    direction: str
    model: str
    parameters: int
    nbytes: int
    seconds: float
    queued_s: float
    rate_mb_s: float
    faults: int
    repeat: int

    @property
    def key(self) -> Key:
        return self.site, self.carrier, self.direction, self.model, self.nbytes, self.repeat


def read_rows(path: Path) -> list[TransferRow]:
    """The rows of an earlier study; none where there is no file. A last line that was cut off does not count.

    Raises:
        UserMistake: the file is of another kind.
    """
    if not path.exists():
        return []
    kinds: dict[str, Any] = {"int": int, "float": lambda text: float(text or "nan"), "str": str}
    try:
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [
            TransferRow(**{field.name: kinds[str(field.type)](record[field.name]) for field in fields(TransferRow)})
            for record in csv.DictReader(whole)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserMistake(f"{path} is no table of a transfer study: {error}", remedy="Move it away") from None


def ends(rows: Iterable[TransferRow]) -> list[tuple[str, str]]:
    """(site, direction) in the order of the rows, the ways of a site beside each other."""
    sites = dict.fromkeys(row.site for row in rows)
    there = {(row.site, row.direction) for row in rows}
    return [(site, way) for site in sites for way in DIRECTIONS if (site, way) in there]

"""Measured transfers: the rows of the study's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workflows.studies import tables

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
        seconds: its duration without the wait in the service's queue.
        queued_s: that wait.
        rate_mb_s: nbytes by seconds, in 10^6 bytes a second; NaN, in the file an empty cell, if it was too short for
            its clock.
        faults: number of faults that the service has reported and repaired.
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
        """Return the identity of the transfer."""
        return self.site, self.carrier, self.direction, self.model, self.nbytes, self.repeat


def read_rows(path: Path) -> list[TransferRow]:
    """Return the rows of an earlier study; none if there is no file. A cut-off last line is left out.

    Raises:
        UserMistake: the file is of another kind.
    """
    return tables.read_rows(path, TransferRow, "transfer")


def ends(rows: Iterable[TransferRow]) -> list[tuple[str, str]]:
    """Return each (site, direction) in the order of the rows, both directions of a site next to each other."""
    sites = dict.fromkeys(row.site for row in rows)
    there = {(row.site, row.direction) for row in rows}
    return [(site, way) for site in sites for way in DIRECTIONS if (site, way) in there]

"""The round trips of a transfer study, their number of bytes, and checks of the budget and the disk space."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.base.errors import UserMistake
from site_configs.library.site import Carrier, Site
from workflows.console.units import bytes_text, plural
from workflows.planning.storage import SPARE_BYTES
from workflows.studies.transfers.models import StudyModel
from workflows.studies.transfers.rows import DIRECTIONS, Key

GB = 10**9
FOLDER = "transfer_study"  # below the folder of what is sent to a site; its content belongs to the study
CARRIER_TEXTS: Mapping[Carrier, str] = {"copy": "copied", "shared": "linked", "globus": "by Globus Transfer"}


@dataclass(frozen=True)
class StudyFile:
    """A model as a file of this size."""

    model: StudyModel
    nbytes: int


@dataclass(frozen=True)
class RoundTrip:
    """A file sent to a site and fetched back, once."""

    site: Site
    file: StudyFile
    repeat: int

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return the keys of its rows in the table."""
        site, file = self.site, self.file
        return tuple((site.name, site.carrier, d, file.model.name, file.nbytes, self.repeat) for d in DIRECTIONS)

    @property
    def name(self) -> str:
        """Return site, model, size and number for the user."""
        return f"{self.site.name}, {self.file.model.name} ({bytes_text(self.file.nbytes)}), trip {self.repeat}"


def trips_of(sites: Iterable[Site], files: Iterable[StudyFile], repeats: int, done: Collection[Key]) -> list[RoundTrip]:
    """Return the round trips that are not in the table yet.

    Small files come first, and all sites in turn before a repeat, so that changes over time affect all sites.
    """
    sites = list(sites)
    trips = (
        RoundTrip(site, file, repeat)
        for file in sorted(files, key=lambda file: file.nbytes)
        for repeat in range(1, repeats + 1)
        for site in sites
    )
    return [trip for trip in trips if not all(key in done for key in trip.keys)]


def study_folder(site: Site) -> Path:
    """Return the folder of the study at a site; it contains nothing else."""
    return site.incoming / FOLDER


def crossing(trip: RoundTrip, folder: Path) -> int:
    """Return the bytes that a round trip moves; a link moves none."""
    return 0 if _linked(trip, folder) else 2 * trip.file.nbytes


def traffic(trips: Sequence[RoundTrip], folder: Path) -> list[str]:
    """Return a line for each site with the bytes that will move."""
    lines = []
    for name in dict.fromkeys(trip.site.name for trip in trips):
        own = [trip for trip in trips if trip.site.name == name]
        nbytes, largest = sum(crossing(trip, folder) for trip in own), max(trip.file.nbytes for trip in own)
        how = CARRIER_TEXTS[own[0].site.carrier]
        lines.append(
            f"{name}: {bytes_text(nbytes)} in {plural(len(own), 'trip')} there and back, {how}, "
            f"at most {bytes_text(largest)} at a time in {study_folder(own[0].site)}"
        )
    return lines


def check_budget(trips: Sequence[RoundTrip], folder: Path, budget_gb: float) -> None:
    """Raise UserMistake if more bytes would move than the user has agreed to."""
    total = sum(crossing(trip, folder) for trip in trips)
    if total > budget_gb * GB:
        raise UserMistake(
            f"{bytes_text(total)} would move in all, more than the {bytes_text(budget_gb * GB)} of --budget-gb;"
            " nothing has moved",
            remedy=f"Choose fewer --models, --sites or --repeat, or allow it with --budget-gb {math.ceil(total / GB)}",
        )


def check_room(trips: Iterable[RoundTrip], folder: Path, free: Callable[[Path], int] | None = None) -> None:
    """Raise UserMistake if a disk that this machine sees has too little space for the largest file.

    Args:
        trips: round trips that will be made, one after the other.
        folder: the study's own.
        free: returns the free bytes at a path; None: ask the system.
    """
    free = free or (lambda path: shutil.disk_usage(path).free)
    most: dict[int, tuple[int, Path]] = {}
    for trip in trips:
        for path, nbytes in room_of(trip, folder).items():
            most[_disk(path)] = max(most.get(_disk(path), (0, path)), (nbytes, path))
    for nbytes, path in most.values():
        if nbytes + SPARE_BYTES > free(path):
            raise UserMistake(
                f"{path} has {bytes_text(free(path))} of free disk space, the study needs "
                f"{bytes_text(nbytes + SPARE_BYTES)} there; nothing has moved",
                remedy="Free some, choose --out DIR on a larger disk, or choose smaller --models",
            )


def room_of(trip: RoundTrip, folder: Path) -> dict[Path, int]:
    """Return the bytes that are on each disk at the same time, by one path on each disk.

    Here these are the file and the returned one, at a site with copies one more. The disk of a site behind Globus is
    not visible from here.
    """
    nbytes, here, there = trip.file.nbytes, _existing(folder), _existing(study_folder(trip.site))
    if _linked(trip, folder):
        return {here: nbytes}
    if trip.site.carrier == "globus":
        return {here: 2 * nbytes}
    return {here: 3 * nbytes} if _disk(here) == _disk(there) else {here: 2 * nbytes, there: nbytes}


def _linked(trip: RoundTrip, folder: Path) -> bool:
    same = _disk(_existing(folder)) == _disk(_existing(study_folder(trip.site)))
    return trip.site.carrier == "shared" and same


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _disk(path: Path) -> int:
    return path.stat().st_dev

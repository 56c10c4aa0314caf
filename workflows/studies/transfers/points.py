"""What a transfer study moves: trips there and back, how many bytes that is, and whether there is room for them."""

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
FOLDER = "transfer_study"  # below the storage of a site; all in it is the study's own
WAYS: Mapping[Carrier, str] = {"copy": "copied", "shared": "linked", "globus": "by Globus Transfer"}


@dataclass(frozen=True)
class StudyFile:
    """A model as a file of so many bytes."""

    model: StudyModel
    nbytes: int


@dataclass(frozen=True)
class RoundTrip:
    """A file sent to a site and brought back, once."""

    site: Site
    load: StudyFile
    repeat: int

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of its rows in the table."""
        site, load = self.site, self.load
        return tuple((site.name, site.carrier, d, load.model.name, load.nbytes, self.repeat) for d in DIRECTIONS)

    @property
    def words(self) -> str:
        return f"{self.site.name}, {self.load.model.name} ({bytes_text(self.load.nbytes)}), trip {self.repeat}"


def trips_of(sites: Iterable[Site], loads: Iterable[StudyFile], repeats: int, done: Collection[Key]) -> list[RoundTrip]:
    """The trips that are not in the table yet: small files first, and all sites in turn before a repeat, so that what
    changes with the hour meets all of them."""
    sites = list(sites)
    trips = (
        RoundTrip(site, load, repeat)
        for load in sorted(loads, key=lambda load: load.nbytes)
        for repeat in range(1, repeats + 1)
        for site in sites
    )
    return [trip for trip in trips if not all(key in done for key in trip.keys)]


def study_folder(site: Site) -> Path:
    """Where files of the study lie at a site; holds nothing else."""
    return site.storage_root / FOLDER


def crossing(trip: RoundTrip, folder: Path) -> int:
    """Bytes that a trip moves, there and back; a link moves none."""
    return 0 if _linked(trip, folder) else 2 * trip.load.nbytes


def traffic(trips: Sequence[RoundTrip], folder: Path) -> list[str]:
    """A line for each site: how much will move."""
    lines = []
    for name in dict.fromkeys(trip.site.name for trip in trips):
        own = [trip for trip in trips if trip.site.name == name]
        nbytes, largest = sum(crossing(trip, folder) for trip in own), max(trip.load.nbytes for trip in own)
        lines.append(
            f"{name}: {bytes_text(nbytes)} in {plural(len(own), 'trip')} there and back, {WAYS[own[0].site.carrier]}, "
            f"at most {bytes_text(largest)} at a time in {study_folder(own[0].site)}"
        )
    return lines


def check_budget(trips: Sequence[RoundTrip], folder: Path, budget_gb: float) -> None:
    """Raises UserMistake if more bytes would move than the user has agreed to."""
    total = sum(crossing(trip, folder) for trip in trips)
    if total > budget_gb * GB:
        raise UserMistake(
            f"{bytes_text(total)} would move in all, more than the {bytes_text(budget_gb * GB)} of --budget-gb;"
            " nothing has moved",
            remedy=f"Ask for fewer --models, --sites or --repeat, or agree by --budget-gb {math.ceil(total / GB)}",
        )


def check_room(trips: Iterable[RoundTrip], folder: Path, free: Callable[[Path], int] | None = None) -> None:
    """Raises UserMistake if a disk that this machine sees has not the room for the largest file.

    Args:
        trips: to be made, one after the other.
        folder: the study's own.
        free: tells the free bytes at a path; None: asks the system.
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
                remedy="Free some, choose --out DIR on a larger disk, or ask for smaller --models",
            )


def room_of(trip: RoundTrip, folder: Path) -> dict[Path, int]:
    """Bytes that lie on each disk at the same time: here the file and what came back, at a site that is copied to one
    more. The disk of a site that Globus reaches is not seen from here. Each disk is told by one path on it."""
    nbytes, here, there = trip.load.nbytes, _standing(folder), _standing(study_folder(trip.site))
    if _linked(trip, folder):
        return {here: nbytes}
    if trip.site.carrier == "globus":
        return {here: 2 * nbytes}
    return {here: 3 * nbytes} if _disk(here) == _disk(there) else {here: 2 * nbytes, there: nbytes}


def _linked(trip: RoundTrip, folder: Path) -> bool:
    same = _disk(_standing(folder)) == _disk(_standing(study_folder(trip.site)))
    return trip.site.carrier == "shared" and same


def _standing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _disk(path: Path) -> int:
    return path.stat().st_dev

"""Makes the trips of a transfer study: writes each file once, sends it, brings it back, verifies, deletes."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from apps.artifacts.store import Artifact, artifact_path, verify
from apps.base.errors import CrossfedError
from workflows.studies.transfers.carriers import Carrier, FileTransfer, Stores
from workflows.studies.transfers.models import write_model
from workflows.studies.transfers.points import RoundTrip, StudyFile
from workflows.studies.transfers.rows import MB, RETURN, SEND, Direction, TransferRow

logger = logging.getLogger(__name__)
Show = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all


@dataclass(frozen=True)
class TripResult:
    """What came of a trip: its rows, and what went wrong, after which the site is left alone."""

    trip: RoundTrip
    rows: tuple[TransferRow, ...] = ()
    failure: str = ""


def stores_in(folder: Path) -> Stores:
    return Stores(folder / "artifacts", folder / "returned")


def measure_all(
    trips: Sequence[RoundTrip], ways: Mapping[str, Carrier], stores: Stores, dtype: str, show: Show
) -> Iterator[TripResult]:
    """Make the trips, one after the other; each answer comes as soon as its trip is done.

    A site where a trip has failed is left out from there on. All files of the study are deleted at the end, also when
    it is interrupted.

    Args:
        trips: with those of the same file beside each other.
        ways: site -> the way there.
        stores: the study's folders.
        dtype: of the files, as torch calls it.
        show: told how far the present work is.

    Raises:
        StorageError: a file cannot be written here.
    """
    failed: set[str] = set()
    _empty(stores)
    try:
        for load, group in groupby(trips, key=lambda trip: trip.load):
            own = [trip for trip in group if trip.site.name not in failed]
            if not own:
                continue
            artifact = _write(load, stores, dtype, show)
            for trip in own:
                if trip.site.name not in failed:
                    measured = measure(trip, ways[trip.site.name], artifact, stores, show)
                    failed |= {trip.site.name} if measured.failure else set()
                    yield measured
            artifact_path(stores.sent, artifact).unlink(missing_ok=True)
    finally:
        _empty(stores)


def _empty(stores: Stores) -> None:
    for store in (stores.sent, stores.returned):
        shutil.rmtree(store, ignore_errors=True)


def _write(load: StudyFile, stores: Stores, dtype: str, show: Show) -> Artifact:
    words = f"writing {load.model.name}"
    return write_model(stores.sent, load.model, dtype, lambda nbytes: show(words, nbytes, load.nbytes))


def measure(trip: RoundTrip, way: Carrier, artifact: Artifact, stores: Stores, show: Show) -> TripResult:
    """Make one trip and delete its files, also when it is interrupted."""
    rows: tuple[TransferRow, ...] = ()
    failures: list[str] = []
    try:
        rows = _there_and_back(trip, way, artifact, stores, show)
    except CrossfedError as error:
        failures.append(_told(trip, error))
    finally:
        show(f"{trip.words}: deleting", artifact["nbytes"], artifact["nbytes"])
        artifact_path(stores.returned, artifact).unlink(missing_ok=True)
        try:
            way.clear(artifact)
        except CrossfedError as error:
            failures.append(f"not deleted there: {_told(trip, error)}")
    return TripResult(trip, rows, "; ".join(failures))


def _told(trip: RoundTrip, error: CrossfedError) -> str:
    logger.warning("%s failed", trip.words, exc_info=True)
    return str(error)


def _there_and_back(
    trip: RoundTrip, way: Carrier, artifact: Artifact, stores: Stores, show: Show
) -> tuple[TransferRow, ...]:
    """The rows of a trip. They count if what has come back is what was sent, by its SHA-256."""
    nbytes = artifact["nbytes"]
    stores.returned.mkdir(parents=True, exist_ok=True)
    there = way.send(artifact, lambda done: show(f"{trip.words}: there", done, nbytes))
    back = way.fetch(artifact, lambda done: show(f"{trip.words}: back", done, nbytes))
    verify(stores.returned, artifact)
    return _row(trip, SEND, there), _row(trip, RETURN, back)


def _row(trip: RoundTrip, direction: Direction, passage: FileTransfer) -> TransferRow:
    load = trip.load
    rate = load.nbytes / passage.seconds / MB if passage.seconds > 0 else math.nan
    return TransferRow(
        site=trip.site.name,
        carrier=trip.site.carrier,
        direction=direction,
        model=load.model.name,
        parameters=load.model.parameters,
        nbytes=load.nbytes,
        seconds=passage.seconds,
        queued_s=passage.queued_s,
        rate_mb_s=rate,
        faults=passage.faults,
        repeat=trip.repeat,
    )

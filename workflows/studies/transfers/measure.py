"""Make the round trips of a transfer study: write each file once, send it, fetch it back, verify, delete."""

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
ShowWork = Callable[[str, int, int], None]  # the work, bytes so far, bytes in all


@dataclass(frozen=True)
class TripResult:
    """Result of a round trip: its rows, and the failure after which the site is left out."""

    trip: RoundTrip
    rows: tuple[TransferRow, ...] = ()
    failure: str = ""


def stores_in(folder: Path) -> Stores:
    """Return the study's folders of artifacts."""
    return Stores(folder / "artifacts", folder / "returned")


def measure_all(
    trips: Sequence[RoundTrip], carriers: Mapping[str, Carrier], stores: Stores, dtype: str, show: ShowWork
) -> Iterator[TripResult]:
    """Make the round trips one after the other; yield each result as soon as its trip is done.

    A site with a failed trip is left out after it. All files of the study are deleted at the end, also if it is
    interrupted.

    Args:
        trips: those of the same file next to each other.
        carriers: by site.
        stores: the study's folders.
        dtype: of the files, torch's name.
        show: receives the progress of the work.

    Raises:
        StorageError: a file cannot be written here.
    """
    failed: set[str] = set()
    _empty(stores)
    try:
        for file, group in groupby(trips, key=lambda trip: trip.file):
            own = [trip for trip in group if trip.site.name not in failed]
            if not own:
                continue
            artifact = _write(file, stores, dtype, show)
            for trip in own:
                if trip.site.name not in failed:
                    measured = measure(trip, carriers[trip.site.name], artifact, stores, show)
                    failed |= {trip.site.name} if measured.failure else set()
                    yield measured
            artifact_path(stores.sent, artifact).unlink(missing_ok=True)
    finally:
        _empty(stores)


def _empty(stores: Stores) -> None:
    for store in (stores.sent, stores.returned):
        shutil.rmtree(store, ignore_errors=True)


def _write(file: StudyFile, stores: Stores, dtype: str, show: ShowWork) -> Artifact:
    work = f"writing {file.model.name}"
    return write_model(stores.sent, file.model, dtype, lambda nbytes: show(work, nbytes, file.nbytes))


def measure(trip: RoundTrip, carrier: Carrier, artifact: Artifact, stores: Stores, show: ShowWork) -> TripResult:
    """Make one round trip and delete its files, also if it is interrupted."""
    rows: tuple[TransferRow, ...] = ()
    failures: list[str] = []
    try:
        rows = _there_and_back(trip, carrier, artifact, stores, show)
    except CrossfedError as error:
        failures.append(_failure(trip, error))
    finally:
        show(f"{trip.name}: deleting", artifact["nbytes"], artifact["nbytes"])
        artifact_path(stores.returned, artifact).unlink(missing_ok=True)
        try:
            carrier.clear(artifact)
        except CrossfedError as error:
            failures.append(f"not deleted there: {_failure(trip, error)}")
    return TripResult(trip, rows, "; ".join(failures))


def _failure(trip: RoundTrip, error: CrossfedError) -> str:
    logger.warning("%s failed", trip.name, exc_info=True)
    return str(error)


def _there_and_back(
    trip: RoundTrip, carrier: Carrier, artifact: Artifact, stores: Stores, show: ShowWork
) -> tuple[TransferRow, ...]:
    """Return the rows of a round trip, after a comparison of the returned file with the sent one by its SHA-256."""
    nbytes = artifact["nbytes"]
    stores.returned.mkdir(parents=True, exist_ok=True)
    there = carrier.send(artifact, lambda done: show(f"{trip.name}: there", done, nbytes))
    back = carrier.fetch(artifact, lambda done: show(f"{trip.name}: back", done, nbytes))
    verify(stores.returned, artifact)
    return _row(trip, SEND, there), _row(trip, RETURN, back)


def _row(trip: RoundTrip, direction: Direction, transfer: FileTransfer) -> TransferRow:
    file = trip.file
    rate = file.nbytes / transfer.seconds / MB if transfer.seconds > 0 else math.nan
    return TransferRow(
        site=trip.site.name,
        carrier=trip.site.carrier,
        direction=direction,
        model=file.model.name,
        parameters=file.model.parameters,
        nbytes=file.nbytes,
        seconds=transfer.seconds,
        queued_s=transfer.queued_s,
        rate_mb_s=rate,
        faults=transfer.faults,
        repeat=trip.repeat,
    )

"""The user's history of batch jobs and their queue waits, for queue studies and queue models.

One append-only CSV file per user with one row per block. Text is quoted, so that a row that was cut off in its last
field can be distinguished from a whole one.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from apps.base.errors import StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockRecord:
    """One batch job of a campaign or a probe.

    Attributes:
        machine: whose queue it was in (``machine_of``); identifies a job together with ``scheduler`` and ``job_id``.
        site: of the campaign.
        campaign: its name.
        scheduler: slurm or pbs.
        queue: as requested.
        job_id: the scheduler's; empty if unknown.
        nodes: as requested.
        walltime_s: as requested.
        submitted: unix seconds, from the scheduler if it reported the time; None if unknown. So are the next two.
        started: None also if it never started.
        ended: None also if it has not ended.
        state: the last known, the scheduler's term.
    """

    machine: str
    site: str
    campaign: str
    scheduler: str
    queue: str
    job_id: str
    nodes: int
    walltime_s: int
    submitted: float | None
    started: float | None
    ended: float | None
    state: str


ANY_CLUSTER = ("slurm", "pbs")  # configs for any machine with this scheduler
COLUMNS = tuple(field.name for field in fields(BlockRecord))


def history_path() -> Path:
    """Return the history's path: ``$CROSSFED_HISTORY``, or ``crossfed/queue_history.csv`` in the user's data folder."""
    folder = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "crossfed"
    chosen = os.environ.get("CROSSFED_HISTORY")
    return Path(chosen).expanduser() if chosen else folder / "queue_history.csv"


def machine_of(site: str, config: str) -> str:
    """Return the history's name for the machine of a site.

    It is the config's name, so that campaigns with different names for a site share one machine. The configs for any
    cluster and a user's own file do not identify a machine: for these it is the site's name.
    """
    return site if config in ANY_CLUSTER or config.endswith(".py") else config


def append(record: BlockRecord, path: Path | None = None) -> bool:
    """Append a row to the history; several drivers may do so at once.

    A row is one write to the end of the file. That keeps rows of several drivers apart on a local disk; on a network
    file system two hosts may damage each other's rows, which a reader skips with a warning.

    Returns:
        Whether the row was written. A history that cannot be written is a warning in the log, never an error: it is
        no reason to stop a campaign.
    """
    path = path or history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _begin(path)
        _append_line(path, as_line(record))
    except OSError as error:
        logger.warning("job %s is missing in the queue history %s: %s", record.job_id, path, error.strerror or error)
        return False
    return True


def as_line(record: BlockRecord) -> str:
    """Return the row of a record; line breaks in texts become spaces, because a row is one line."""
    clean = (" ".join(v.split()) if isinstance(v, str) else v for v in astuple(record))
    return _csv_line([*clean])


def _csv_line(values: list[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(values)
    return stream.getvalue()


def _begin(path: Path) -> None:
    """Create the file with its header in one step; if several drivers try at once, one succeeds."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        draft.write_text(_csv_line([*COLUMNS]))
        os.link(draft, path)
    except FileExistsError:
        logger.debug("another driver has created %s", path)
    finally:
        draft.unlink(missing_ok=True)


def _append_line(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        # a row that a crash has cut off gets an end of line; if it is another driver's write in progress instead,
        # the result is an empty line, which readers skip
        separator = "" if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n" else "\n"
        content = (separator + line).encode()
        written = os.write(descriptor, content)
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")
    finally:
        os.close(descriptor)


def read_history(path: Path | None = None) -> list[BlockRecord]:
    """Return the jobs of the history, oldest first; each once, from its last row.

    A last line without an end of line is skipped: a driver is writing it, or died there. A damaged line in the middle
    is skipped with a warning.

    Raises:
        StorageError: the file exists and cannot be read. A history without a file is empty.
    """
    path = path or history_path()
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(f"cannot read the queue history: {error.strerror}", file=str(path)) from error
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    jobs: dict[tuple[object, ...], BlockRecord] = {}
    for number, record in _records(whole, path):
        identity = (record.machine, record.scheduler, record.job_id)
        jobs[identity if record.job_id else (number,)] = record
    return list(jobs.values())


def _records(text: str, path: Path) -> Iterator[tuple[int, BlockRecord]]:
    header = _csv_line([*COLUMNS]).rstrip("\n")
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line == header:
            continue
        record = _parse(line)
        if record is None:
            logger.warning("%s line %d is not a job and is skipped", path, number)
            continue
        yield number, record


def _parse(line: str) -> BlockRecord | None:
    """Return the record of a line; None unless the line is exactly what would be written for the record."""
    try:
        cells = dict(zip(COLUMNS, next(csv.reader([line], strict=True)), strict=True))
        times = {name: float(cells[name]) if cells[name] else None for name in ("submitted", "started", "ended")}
        counts = {name: int(cells[name]) for name in ("nodes", "walltime_s")}
        values: dict[str, Any] = {**cells, **times, **counts}
        record = BlockRecord(**values)
    except (ValueError, csv.Error):
        return None
    return record if line.endswith('"') else None

"""The user's own record of batch jobs: how long each waited, so that queue studies and models can learn from it.

One CSV file a user, a row per block, only ever appended to. Text stands in quotes, so that a row which was cut off
in its last field can be told from a whole one.
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
    """One batch job of a campaign or a probe; times in UNIX seconds, None where it has not come to that.

    Attributes:
        machine: whose queue it stood in (``machine_of``); with ``scheduler`` and ``job_id`` what tells jobs apart.
        site, campaign: whose block it was.
        scheduler: slurm or pbs.
        queue: as it was asked for.
        job_id: the scheduler's own; empty where it is not known.
        nodes, walltime_s: as requested.
        submitted, started, ended: as the scheduler says, where it was asked.
        state: the last that is known, in the scheduler's words.
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


ANY_CLUSTER = ("slurm", "pbs")  # configs that describe no machine in particular
COLUMNS = tuple(field.name for field in fields(BlockRecord))


def history_path() -> Path:
    """Where the history lies: ``$CROSSFED_HISTORY``, else ``crossfed/queue_history.csv`` in the user's data folder."""
    folder = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "crossfed"
    chosen = os.environ.get("CROSSFED_HISTORY")
    return Path(chosen).expanduser() if chosen else folder / "queue_history.csv"


def machine_of(site: str, config: str) -> str:
    """What the history calls the machine of a site: by its config, so that campaigns which name their sites otherwise
    still speak of one machine; a config for any cluster, and a user's own file, says nothing: there by the site's name.
    """
    return site if config in ANY_CLUSTER or config.endswith(".py") else config


def append(record: BlockRecord, path: Path | None = None) -> bool:
    """Add a row to the history; several drivers may do so at once.

    A row goes out in one write to the end of the file. That keeps rows of several drivers apart on a local disk; on
    a network file system two hosts may damage each other's row, which a reader passes over with a warning.

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
    """The row of a record. Line breaks in texts become blanks: a row is one line."""
    clean = (" ".join(v.split()) if isinstance(v, str) else v for v in astuple(record))
    return _csv_line([*clean])


def _csv_line(values: list[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(values)
    return stream.getvalue()


def _begin(path: Path) -> None:
    """Make the file with its header, whole: of several drivers that try at once, one has its way."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        draft.write_text(_csv_line([*COLUMNS]))
        os.link(draft, path)
    except FileExistsError:
        logger.debug("another driver has begun %s", path)
    finally:
        draft.unlink(missing_ok=True)


def _append_line(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        # what a crash has cut off gets an end of line of its own; should another driver be in the middle of its
        # write, that makes an empty line, which says nothing to a reader
        mend = "" if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n" else "\n"
        content = (mend + line).encode()
        written = os.write(descriptor, content)
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")
    finally:
        os.close(descriptor)


def read_history(path: Path | None = None) -> list[BlockRecord]:
    """The jobs of the history, oldest first; each once, as its last row tells it.

    A last line without its end is passed over: its driver is writing it, or died there. A damaged line in the middle
    is passed over with a warning.

    Raises:
        StorageError: the file is there and cannot be read. A history that is not there is empty.
    """
    path = path or history_path()
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(f"cannot read the queue history: {error.strerror}", file=str(path)) from error
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    jobs: dict[tuple[object, ...], BlockRecord] = {}
    for number, record in _records(whole, path):
        told = (record.machine, record.scheduler, record.job_id)
        jobs[told if record.job_id else (number,)] = record
    return list(jobs.values())


def _records(text: str, path: Path) -> Iterator[tuple[int, BlockRecord]]:
    header = _csv_line([*COLUMNS]).rstrip("\n")
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line == header:
            continue
        record = _parse(line)
        if record is None:
            logger.warning("%s line %d is not a job and is passed over", path, number)
            continue
        yield number, record


def _parse(line: str) -> BlockRecord | None:
    """The record of a line; None unless the line is exactly what would be written for it."""
    try:
        cells = dict(zip(COLUMNS, next(csv.reader([line], strict=True)), strict=True))
        times = {name: float(cells[name]) if cells[name] else None for name in ("submitted", "started", "ended")}
        counts = {name: int(cells[name]) for name in ("nodes", "walltime_s")}
        values: dict[str, Any] = {**cells, **times, **counts}
        record = BlockRecord(**values)
    except (ValueError, csv.Error):
        return None
    return record if line.endswith('"') else None

"""Sources of queue records: the user's own history, a scheduler's accounting, saved or public traces."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from apps.base.errors import UserMistake
from workflows.console.units import DAY_S
from workflows.records.queue_history import BlockRecord, history_path, read_history
from workflows.studies.queues.logs import ask_sacct, is_pbs, read_pbs, read_sacct
from workflows.studies.queues.swf import is_swf, read_swf
from workflows.studies.queues.waits import Reading, Wait, reading_of, wait_of

HISTORY, SACCT = "history", "sacct"
SACCT_DAYS = 90  # of accounting that are requested unless the user gives a date


def read_sources(
    sources: Sequence[str], since: float | None = None, processors_per_node: int | None = None
) -> list[Reading]:
    """Read the waits of each source.

    Args:
        sources: ``history``, ``sacct``, or files: a history, what ``sacct --parsable2`` printed, the accounting log
            of a PBS server, a trace in the Standard Workload Format; all but the history also as .gz.
        since: UNIX seconds; older jobs are not requested from sacct.
        processors_per_node: for traces without it in their header.

    Raises:
        UserMistake: a file is missing, or of none of these kinds.
        CrossfedError: sacct failed.
    """
    return [_read_source(source, since, processors_per_node) for source in sources]


def _read_source(source: str, since: float | None, processors_per_node: int | None) -> Reading:
    if source == HISTORY:
        return history_reading(history_path())
    if source == SACCT:
        return ask_sacct(time.time() - DAY_S * SACCT_DAYS if since is None else since)
    return read_file(Path(source), processors_per_node)


def read_file(path: Path, processors_per_node: int | None = None) -> Reading:
    """Read a file of any of the known kinds; its content decides which.

    Raises:
        UserMistake: the file cannot be read, or is of an unknown kind.
    """
    text = read_content(path)
    name = path.name.removesuffix(".gz").removesuffix(".swf")
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if "job_id" in first and "walltime_s" in first:
        return history_reading(path)
    if is_pbs(first):
        return read_pbs(name, lines)
    if is_swf(first):
        return read_swf(name, text, processors_per_node)
    if "|" in first:
        return read_sacct(name, lines)
    known = "a queue history, output of sacct --parsable2, a PBS accounting log, or a trace in SWF"
    raise UserMistake(f"{path} is not {known}")


def read_content(path: Path) -> str:
    """Return the text of a file, plain or compressed by gzip."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserMistake(f"there is no file {path}; sources are history, sacct, or a FILE") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserMistake(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return content.decode(errors="replace")


def history_reading(path: Path) -> Reading:
    """Read the waits of the user's own blocks."""
    return reading_of(f"the history {path}", [history_wait(record) for record in read_history(path)])


def history_wait(record: BlockRecord) -> Wait | str:
    """Return the wait of one block, or the reason why there is none."""
    return wait_of(record.machine, record.queue, record.nodes, record.walltime_s, record.submitted, record.started)

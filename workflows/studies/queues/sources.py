"""Where queue records come from: the user's own history, a scheduler's accounting, saved or public traces."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from apps.base.errors import UserMistake
from workflows.records.queue_history import BlockRecord, history_path, read_history
from workflows.studies.queues.logs import ask_sacct, is_pbs, read_pbs, read_sacct
from workflows.studies.queues.swf import is_swf, read_swf
from workflows.studies.queues.waits import Reading, Wait, reading_of, wait_of

HISTORY, SACCT = "history", "sacct"
SACCT_DAYS = 90  # of accounting that are asked for unless the user says since when


def read_sources(
    sources: Sequence[str], since: float | None = None, processors_per_node: int | None = None
) -> list[Reading]:
    """The waits of each source.

    Args:
        sources: ``history``, ``sacct``, or files: a history, what ``sacct --parsable2`` printed, the accounting log
            of a PBS server, a trace in the Standard Workload Format; all but the history also as .gz.
        since: UNIX seconds; sacct is not asked for jobs before it.
        processors_per_node: for traces whose header does not tell it.

    Raises:
        UserMistake: a file is not there, or is none of these.
        CrossfedError: sacct failed.
    """
    return [_read_source(source, since, processors_per_node) for source in sources]


def _read_source(source: str, since: float | None, processors_per_node: int | None) -> Reading:
    if source == HISTORY:
        return history_reading(history_path())
    if source == SACCT:
        return ask_sacct(time.time() - 86400 * SACCT_DAYS if since is None else since)
    return read_file(Path(source), processors_per_node)


def read_file(path: Path, processors_per_node: int | None = None) -> Reading:
    """A file of any of the known kinds; its content says which.

    Raises:
        UserMistake: the file cannot be read, or is of no known kind.
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
    raise UserMistake(f"{path} is neither {known}")


def read_content(path: Path) -> str:
    """The text of a file, plain or compressed by gzip."""
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
    """The waits of the user's own blocks."""
    return reading_of(f"the history {path}", [history_wait(record) for record in read_history(path)])


def history_wait(record: BlockRecord) -> Wait | str:
    """The wait of one block, or why there is none."""
    return wait_of(record.machine, record.queue, record.nodes, record.walltime_s, record.submitted, record.started)

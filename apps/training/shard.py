"""A site's private shard: its training records, written once below the site's storage root and never sent.

<root>/shard/<sha256>.jsonl        the records, named by the SHA-256 of the file
<root>/shard/<sha256>.index        where each record lies in it, see ``shard_index``
<root>/shard/request-<hash>.json   the shard of a request, a fingerprint of the source it was read from, and the state
                                   of both files when they were verified

``open_shard`` reads and verifies a whole shard, once, when a site enrols. A training opens it with ``enrolled_shard``,
which compares sizes and times and reads no record; each record is verified when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.base.errors import StorageError
from apps.base.files import inside
from apps.training.shard_index import DamagedShardError, IndexEntries, ShardReader, index_path
from data.files import atomic_file, file_sha256
from data.records import canonical_line, iter_records, source_path
from data.tasks import EMBEDDED, Record, in_canonical_order

logger = logging.getLogger(__name__)

FOLDER = "shard"
FOLDER_MODE, FILE_MODE = 0o700, 0o600  # other accounts of the facility must not read a private shard


@dataclass(frozen=True)
class Shard:
    """Records at a site. ``sha256`` is the file's, and equals ``definition_sha256`` of the same request."""

    path: Path
    sha256: str
    samples: int
    per_task: dict[str, int]


def open_shard(root: Path, source: str, tasks: Sequence[str], per_task: int | None, split: str = "train") -> Shard:
    """Return the shard of a request; write it at the first call, and verify it at every later one.

    It is written again if it is damaged or if its source has changed.

    Args:
        root: the site's storage.
        source: of the records, as in ``data.records.load_records``.
        tasks: task ids or family names.
        per_task: number of records of each task; None: all.
        split: of the source.

    Raises:
        StorageError: the folder of shards leads outside ``root``.
        ValueError: no task is given, or what ``load_records`` raises.
        FileNotFoundError: the source does not exist and there is no shard of it.
    """
    if not tasks:
        raise ValueError(f"a shard below {root} needs at least one task")
    folder = _shard_folder(root)
    request = _request(source, split, tasks, per_task)
    known = _request_path(folder, request)
    fingerprint = source_fingerprint(source)
    shard = _find(folder, known, fingerprint)
    if shard is None:
        shard = _write(folder, source, split, tasks, per_task)
        logger.info("wrote the shard %s: %d samples", shard.path, shard.samples)
    content = _request_bytes(request, fingerprint, shard)
    if not known.is_file() or known.read_bytes() != content:
        with atomic_file(known.parent, known.name, FILE_MODE) as handle:
            handle.write(content)
    return shard


def enrolled_shard(
    root: Path, source: str, tasks: Sequence[str], per_task: int | None, sha256: str, split: str = "train"
) -> ShardReader:
    """Return a reader of the shard that a site has enrolled with, without reading its records.

    Args:
        root: the site's storage.
        source: of the records.
        tasks: task ids or family names.
        per_task: number of records of each task; None: all.
        sha256: of the shard.
        split: of the source.

    Raises:
        StorageError: the folder of shards leads outside ``root``.
        DamagedShardError: shard, index or source is not as it was when it was verified: call ``open_shard``.
    """
    folder = inside(root, FOLDER)
    known = _known(_request_path(folder, _request(source, split, tasks, per_task)))
    path = inside(folder, f"{known.get('sha256')}.jsonl")
    same_source = source_fingerprint(source) in (None, known.get("fingerprint"))
    if known.get("sha256") != sha256 or not same_source or known.get("verified") != _state(path):
        raise DamagedShardError(f"{path} or its source has changed since it was verified")
    return ShardReader(path)


def read_shard(root: Path, sha256: str) -> list[Record]:
    """Read all records of a shard; for tests and small shards.

    Raises:
        StorageError: the file leads outside ``root``.
        ValueError: the name is not a SHA-256, or the file has another one.
        FileNotFoundError: there is no such shard.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} is not the name of a shard: it must be 64 hexadecimal digits")
    path = inside(root, FOLDER, f"{sha256}.jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"no shard {sha256} below {root}: open_shard writes it")
    if file_sha256(path) != sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not its name; open_shard builds it again")
    return list(shard_records(path))


def shard_records(path: Path) -> Iterator[Record]:
    """Yield the records of a shard's file one by one."""
    with open(path, "rb") as lines:
        for line in lines:
            yield json.loads(line)


def source_fingerprint(source: str) -> str | None:
    """Return a hash of the names, sizes and times of a source's files; None if the source does not exist any more.

    A hash of the content would read 700 MB at every start.
    """
    try:
        root = source_path(source)
    except FileNotFoundError:
        return None
    if source == EMBEDDED:
        return file_sha256(root / "manifest.json")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    state = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _shard_folder(root: Path) -> Path:
    folder = inside(root, FOLDER)
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)  # it may have been created by hand, or under another umask
    return folder


def _request(source: str, split: str, tasks: Sequence[str], per_task: int | None) -> dict[str, Any]:
    return {"source": source, "split": split, "tasks": in_canonical_order(tasks), "per_task": per_task}


def _request_path(folder: Path, request: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return folder / f"request-{key[:32]}.json"


def _known(path: Path) -> dict[str, Any]:
    """Return the content of a request's file; empty if there is none, or if it cannot be used."""
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if isinstance(known, dict):
        return known
    logger.warning("%s cannot be read: building its shard again", path)
    return {}


def _find(folder: Path, request: Path, fingerprint: str | None) -> Shard | None:
    """Return the shard that a request's file names, if it is whole and its source is unchanged or gone."""
    known = _known(request)
    try:
        path = inside(folder, f"{known['sha256']}.jsonl")
        if fingerprint not in (None, known["fingerprint"]):
            logger.info("the source of %s has changed: reading it again", path)
            return None
        if (file_sha256(path), file_sha256(index_path(path))) == (known["sha256"], known["index_sha256"]):
            counts = {str(task): int(number) for task, number in known["per_task"].items()}
            return Shard(path, known["sha256"], sum(counts.values()), counts)
        logger.warning("%s is damaged: building it again", path)
    except FileNotFoundError:
        pass  # a shard that was deleted
    except (StorageError, ValueError, KeyError, TypeError, AttributeError):
        if known:
            logger.warning("%s cannot be read: building its shard again", request)
    return None


def _state(path: Path) -> list[list[int]] | None:
    """Return size and time of a shard and of its index; None if one is missing."""
    try:
        return [[status.st_size, status.st_mtime_ns] for status in (path.stat(), index_path(path).stat())]
    except OSError:
        return None


def _write(folder: Path, source: str, split: str, tasks: Sequence[str], per_task: int | None) -> Shard:
    """Stream the records into a file that is named by its hash, which is known only at the end; then the index."""
    digest, entries = hashlib.sha256(), IndexEntries()
    counts: dict[str, int] = {}
    with atomic_file(folder, lambda: f"{digest.hexdigest()}.jsonl", FILE_MODE) as handle:
        for record in iter_records(source, split, tasks, per_task):
            line = canonical_line(record).encode()
            digest.update(line)
            entries.add(line)
            handle.write(line)
            counts[record["task"]] = counts.get(record["task"], 0) + 1
    sha256 = digest.hexdigest()
    path = folder / f"{sha256}.jsonl"
    with atomic_file(folder, index_path(path).name, FILE_MODE) as handle:
        handle.write(entries.content())
    return Shard(path, sha256, sum(counts.values()), counts)


def _request_bytes(request: dict[str, Any], fingerprint: str | None, shard: Shard) -> bytes:
    known = {
        "request": request,
        "fingerprint": fingerprint,
        "sha256": shard.sha256,
        "index_sha256": file_sha256(index_path(shard.path)),
        "per_task": shard.per_task,
        "verified": _state(shard.path),
    }
    return (json.dumps(known, indent=1) + "\n").encode()

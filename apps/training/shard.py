"""A site's private shard: its training records, written once below the site's own root and never sent.

<root>/shard/<sha256>.jsonl        the records, named by the SHA-256 of the file
<root>/shard/request-<hash>.json   which shard answers which request, and what its source looked like
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import atomic_writer, file_sha256, publish, staged
from data.records import canonical_line, iter_records, source_path
from data.tasks import EMBEDDED, Record, in_canonical_order

logger = logging.getLogger(__name__)

FOLDER = "shard"
FOLDER_MODE = 0o700  # other accounts of the facility must not read a private shard


@dataclass(frozen=True)
class Shard:
    """Records at a site. `sha256` is that of the file, and equals `definition_sha256` of the same request."""

    path: Path
    sha256: str
    samples: int
    per_task: dict[str, int]


def open_shard(root: Path, source: str, tasks: Sequence[str], per_task: int | None, split: str = "train") -> Shard:
    """The shard of a request, written at the first call, found and verified at every later one.

    It is written anew if it is corrupt or if its source has changed. Raises ValueError if `root`/shard leads
    out of `root` or no task is given, and what `load_records` raises.
    """
    if not tasks:
        raise ValueError(f"a shard below {root} needs at least one task")
    folder = _shard_folder(root)
    request = {"source": source, "split": split, "tasks": in_canonical_order(tasks), "per_task": per_task}
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    index = folder / f"request-{key[:32]}.json"
    fingerprint = source_fingerprint(source)
    shard = _find(folder, index, fingerprint)
    if shard is None:
        shard = _write(folder, source, split, tasks, per_task)
        with atomic_writer(index) as handle:
            handle.write(_index_bytes(request, fingerprint, shard))
        logger.info("wrote the shard %s: %d samples", shard.path, shard.samples)
    return shard


def read_shard(root: Path, sha256: str) -> list[Record]:
    """The records of the shard of that hash.

    Raises ValueError if the name is no hash or leads out of `root`, or if the file does not have that hash,
    and FileNotFoundError if there is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} does not name a shard: it must be 64 hexadecimal digits")
    path = _inside(root, root / FOLDER / f"{sha256}.jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"no shard {sha256} below {root}: open_shard writes it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is corrupt: its hash is not its name; open_shard rebuilds it")
    return [json.loads(line) for line in content.splitlines()]


def source_fingerprint(source: str) -> str | None:
    """A short sign of the source's state from names, sizes and times; None if it is not there any more.

    Telling a changed source by its full content would read 700 MB at every start.
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


def _inside(root: Path, path: Path) -> Path:
    """`path` with all links followed; ValueError if that leads out of `root`."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise ValueError(f"{path} leads to {resolved}, which is outside {root}: refused")
    return resolved


def _shard_folder(root: Path) -> Path:
    folder = _inside(root, root / FOLDER)
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)  # it may have been made by hand, or under a umask
    return folder


def _find(folder: Path, index: Path, fingerprint: str | None) -> Shard | None:
    """The shard that an index file names, if it is whole and its source is unchanged or gone."""
    try:
        known = json.loads(index.read_bytes())
        path = _inside(folder, folder / f"{known['sha256']}.jsonl")
        if fingerprint not in (None, known["fingerprint"]):
            logger.info("the source of %s has changed: reading it again", path)
            return None
        if file_sha256(path) == known["sha256"]:
            counts = {str(task): int(number) for task, number in known["per_task"].items()}
            return Shard(path, known["sha256"], sum(counts.values()), counts)
        logger.warning("%s is corrupt: building it again", path)
    except FileNotFoundError:
        pass  # the first call, or a shard that was deleted
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s cannot be read: building its shard again", index)
    return None


def _write(folder: Path, source: str, split: str, tasks: Sequence[str], per_task: int | None) -> Shard:
    """Stream the records into a file and name it by its hash, which is known only at the end."""
    digest = hashlib.sha256()
    counts: dict[str, int] = {}
    with staged(folder) as handle:
        for record in iter_records(source, split, tasks, per_task):
            line = canonical_line(record).encode()
            digest.update(line)
            handle.write(line)
            counts[record["task"]] = counts.get(record["task"], 0) + 1
        path = folder / f"{digest.hexdigest()}.jsonl"
        publish(handle, path)
    return Shard(path, digest.hexdigest(), sum(counts.values()), counts)


def _index_bytes(request: dict[str, Any], fingerprint: str | None, shard: Shard) -> bytes:
    known = {"request": request, "fingerprint": fingerprint, "sha256": shard.sha256, "per_task": shard.per_task}
    return (json.dumps(known, indent=1) + "\n").encode()

"""Content hashes that show that all sites have the same data, and the check of the embedded set."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.records import canonical_line, embedded_folder, iter_records

REMEDY = "install crossfed again, or build the set again with data/build_chemistry.py"


def definition_sha256(source: str, tasks: Sequence[str] | None, split: str, per_task: int | None) -> str:
    """Return the SHA-256 of the canonical JSON lines of the records of `load_records` with the same arguments.

    It does not depend on the file format: an archive and a folder with equal records have equal hashes.
    """
    digest = hashlib.sha256()
    for record in iter_records(source, split, tasks, per_task):
        digest.update(canonical_line(record).encode())
    return digest.hexdigest()


def verify_embedded(folder: Path | None = None) -> dict[str, Any]:
    """Check every file of the embedded set, or of another set that the generator wrote, against its manifest.

    Args:
        folder: folder of the set; None: the embedded set.

    Returns:
        The manifest: settings, package versions, provenance and number of records per task, file hashes.

    Raises:
        ValueError: a file is missing, has changed, or has another number of records; the message names the first.
    """
    root = folder or embedded_folder()
    manifest = read_manifest(root)
    for name, stated in manifest["files"].items():
        _verify_file(root / name, stated)
    for task, entry in manifest["tasks"].items():
        for split, number in entry["records"].items():
            if manifest["files"][f"{split}/{task}.jsonl.gz"]["records"] != number:
                raise ValueError(f"{root / 'manifest.json'} contradicts itself on {task}, {split}: {REMEDY}")
    return manifest


def read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest of a set that the generator wrote; raise ValueError if it is missing or broken."""
    try:
        return json.loads((root / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{root / 'manifest.json'} is missing or broken ({error}): {REMEDY}") from error


def _verify_file(path: Path, stated: dict[str, Any]) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {REMEDY}")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != stated["sha256"]:
        raise ValueError(f"{path} has changed since it was built: {REMEDY}")
    if "records" in stated:
        try:
            content = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be unpacked ({error}): {REMEDY}") from error
        same = hashlib.sha256(content).hexdigest() == stated["records_sha256"]
        if not same or content.count(b"\n") != stated["records"]:
            raise ValueError(f"{path} does not contain the records that its manifest lists: {REMEDY}")

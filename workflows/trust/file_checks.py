"""Verify the files of a run against its journal: artifacts, final model, ``campaign.yaml`` and ``metrics.csv``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from apps.artifacts.store import sha256_file
from workflows.records.csv_text import csv_text
from workflows.records.journal import Record
from workflows.records.metrics import COLUMNS, MetricRows
from workflows.trust.findings import Finding

SUFFIX, NAMED = ".safetensors", re.compile("[0-9a-f]{64}")
AT_SERVER = ("prepare", "aggregate", "stage_in")  # apps whose result names artifacts in the run directory
CARD = "README.md"  # of the model; written anew with each report
SHOWN = 90  # characters of a line
Progress = Callable[[int], None]  # is told the bytes of each file that was read


def artifact_findings(folder: Path, records: Sequence[Record], progress: Progress) -> Iterator[Finding]:
    """Yield the artifacts that are missing or do not have the content that their name says.

    Args:
        folder: ``artifacts`` of the run.
        records: of the journal.
        progress: see ``Progress``.
    """
    wanted = named_artifacts(records)
    present = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in present:
        role = wanted.pop(path.stem, "not in the journal") if path.suffix == SUFFIX else ""
        if not NAMED.fullmatch(path.stem) or path.suffix != SUFFIX:
            yield Finding(f"artifacts/{path.name}", "no artifact: left by an interrupted or failed write", remark=True)
            continue
        found = sha256_file(path)
        progress(path.stat().st_size)
        if found != path.stem:
            yield Finding(f"artifacts/{path.name}", f"altered ({role}): its content has the SHA-256 {found}")
    for sha256, role in wanted.items():
        yield Finding(f"artifacts/{sha256}{SUFFIX}", f"missing ({role})")


def named_artifacts(records: Sequence[Record]) -> dict[str, str]:
    """Return what the journal says is in the run's ``artifacts``: SHA-256 -> what it is, for people."""
    found: dict[str, str] = {}
    for record in records:
        if record["event"] != "task_done" or record.get("app") not in AT_SERVER:
            continue
        result, number = record["result"], record.get("round")
        update = record["app"] == "stage_in"
        role = f"update of site {record.get('site')}, round {number}" if update else f"model {number}"
        for key in ("artifact", "sent", "state"):
            if isinstance(result.get(key), Mapping):
                found.setdefault(str(result[key].get("sha256")), role)
    return found


def model_findings(folder: Path, records: Sequence[Record], progress: Progress) -> Iterator[Finding]:
    """Yield the files of the final model that are missing, altered, or not of it."""
    saved = [r["result"].get("files") for r in records if r["event"] == "task_done" and r.get("app") == "save_model"]
    if not saved or saved[-1] is None:
        return
    wanted: dict[str, Any] = saved[-1]
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            yield Finding(f"model/{name}", "missing")
            continue
        progress(path.stat().st_size)
        if (found := sha256_file(path)) != sha256:
            yield Finding(f"model/{name}", f"altered: its content has the SHA-256 {found}, it should be {sha256}")
    others = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(others - wanted.keys() - {CARD}):
        yield Finding(f"model/{name}", "not a file of the final model")


def campaign_findings(path: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Yield the first line of ``campaign.yaml`` that is not as the journal has the campaign."""
    import yaml

    kept = [r["campaign"] for r in records if r["event"] in ("campaign_opened", "campaign_changed")]
    if not kept:
        return
    text = yaml.safe_dump(kept[-1], sort_keys=False, allow_unicode=True)
    yield from _first_difference(path, text)


def _first_difference(path: Path, text: str) -> Iterator[Finding]:
    try:
        found = path.read_bytes()
    except OSError as error:
        yield Finding(path.name, f"cannot be read: {error.strerror}")
        return
    pairs = zip_longest(found.split(b"\n"), text.encode().split(b"\n"))
    for number, (is_there, should) in enumerate(pairs, 1):
        if is_there != should:
            yield Finding(f"{path.name} line {number}", f"is {_shown(is_there)}, the journal has {_shown(should)}")
            return


def _shown(line: bytes | None) -> str:
    return "not there" if line is None else repr(line.decode("utf-8", "replace")[:SHOWN])


def metrics_findings(path: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Yield the lines of ``metrics.csv`` that do not follow from the journal, and as a remark that some are missing."""
    newest, known = _metric_lines(records)
    if not path.is_file():
        if newest:
            yield Finding(path.name, "missing; a resume writes it again", remark=True)
        return
    seen: set[str] = set()
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True), 1):
        if line not in known or line in seen:
            yield Finding(f"{path.name} line {number}", f"does not follow from the journal: {line.rstrip()[:SHOWN]!r}")
        seen.add(line)
    if len(seen) < len(newest):
        missing = len(newest) - len(seen)
        yield Finding(path.name, f"lacks {missing} lines: a driver runs, or ended before it wrote them", remark=True)


def _metric_lines(records: Sequence[Record]) -> tuple[set[str], set[str]]:
    """Return the lines of ``metrics.csv`` after the last record, and all that it has had."""
    rows, known = MetricRows(), {csv_text(COLUMNS, ())}
    for record in records:
        own = MetricRows()
        own.split, own.opened = rows.split, rows.opened
        own.read([record])
        rows.split, rows.opened = own.split, own.opened
        rows.rows |= own.rows
        known |= {csv_text(row, ()) for row in own.rows.values()}
    return {csv_text(row, ()) for row in (COLUMNS, *rows.rows.values())}, known

"""Sources of records: the embedded set, the public archive, or a folder of complete records.

Records are read in canonical task order and, within a task, in the order of the source, so that equal data give
equal content hashes on every machine.
"""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from data import archive
from data.files import LONGEST_LINE, bounded_lines, open_text
from data.foreign import parse_json
from data.names import did_you_mean
from data.tasks import (
    CANONICAL_ORDER,
    EMBEDDED,
    EMBEDDED_TASKS,
    FIELDS,
    Record,
    families_of,
    in_canonical_order,
)

__all__ = [
    "FIELDS",
    "SPLITS",
    "Record",
    "canonical_line",
    "canonical_split",
    "count_records",
    "iter_records",
    "load_records",
]

# Accepted name of a split -> its name here.
SPLITS = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "test": "test",
    "test_subset": "test_subset",
}
# Possible homes of the files of a split below a folder of complete records; a split has one home.
LAYOUTS = (
    ("{split}.jsonl", "{split}.jsonl.gz"),
    ("{split}/*.jsonl", "{split}/*.jsonl.gz"),
    ("{split}.parquet", "{split}-*.parquet"),
    ("{split}/*.parquet",),
    ("data/{split}-*.parquet",),
)
HELD_RECORDS = 100_000  # of a file that mixes tasks: some 200 MB
NULLABLE_FIELDS = frozenset(name for name in FIELDS if "core_tag" in name) | {"target"}


def load_records(
    source: str, split: str, tasks: Sequence[str] | None = None, per_task: int | None = None
) -> list[Record]:
    """Return the records of a split.

    Args:
        source: "embedded", the path of the public archive (data.zip or the folder it unpacks to), or the path of a
            folder with <split>.jsonl, <split>/<task>.jsonl (both with or without .gz) or parquet files.
        split: train, dev or test, and their other names in `SPLITS`.
        tasks: task ids or family names; None: all.
        per_task: number of records of each task at most, from the first; None: all.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: an unknown split, a broken record (with file and line), or a task without any record.
    """
    return list(iter_records(source, split, tasks, per_task))


def iter_records(
    source: str, split: str, tasks: Sequence[str] | None = None, per_task: int | None = None
) -> Iterator[Record]:
    """Yield the records of `load_records` one by one; a file of one task is never loaded as a whole."""
    split = canonical_split(split, source)
    if per_task is not None and per_task < 1:
        raise ValueError(f"per_task must be 1 or more, not {per_task}")
    root = source_path(source)
    wanted = None if tasks is None else _expand(tasks, source)
    if archive.is_archive(root):
        found = archive.read_archive(root, split, wanted, per_task)
    else:
        found = _read_folder(root, split, wanted, per_task)
    yield from _refuse_absent(found, source, split, wanted)


def count_records(source: str, split: str, tasks: Sequence[str] | None, per_task: int) -> dict[str, int]:
    """Return task -> number of its records, counted up to ``per_task``; the records are checked as they are read.

    Raises:
        FileNotFoundError: as `load_records`.
        ValueError: as `load_records`.
    """
    return dict(collections.Counter(record["task"] for record in iter_records(source, split, tasks, per_task)))


def canonical_line(record: Record) -> str:
    """Return a record as one JSON line with sorted keys: the form that is stored and hashed."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"


def canonical_split(split: str, source: str) -> str:
    """Return the name of a split here; raise ValueError for a split that the source cannot have."""
    known = SPLITS if source != EMBEDDED else {k: v for k, v in SPLITS.items() if v != "test_subset"}
    if split not in known:
        raise ValueError(f"unknown split {split!r} of the data source {source!r}{did_you_mean(split, known)}")
    return known[split]


def embedded_folder() -> Path:
    """Return the folder of the embedded set in this package."""
    return Path(__file__).resolve().parent / "chemistry"


def source_path(source: str) -> Path:
    """Return the file or folder of a source; raise FileNotFoundError if it does not exist."""
    path = embedded_folder() if source == EMBEDDED else Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no data at {path}: give the path of SMolInstruct's data.zip, of a records folder, or 'embedded'"
        )
    return path / "data.zip" if (path / "data.zip").is_file() else path


def _expand(tasks: Sequence[str], source: str) -> tuple[str, ...]:
    """Replace families by their tasks; other names stay, since a user's folder may contain other tasks."""
    families = families_of(source)
    return in_canonical_order(name for given in tasks for name in families.get(given, (given,)))


def _refuse_absent(
    records: Iterable[Record], source: str, split: str, wanted: Sequence[str] | None
) -> Iterator[Record]:
    """Yield the records; at the end raise ValueError for a requested task without records."""
    seen: dict[str, None] = {}
    for record in records:
        seen[record["task"]] = None
        yield record
    if not seen and wanted is None:
        raise ValueError(f"no record in split {split!r} of {source}: expected {split}.jsonl or {split}/*.jsonl")
    for task in wanted or ():
        if task not in seen:
            found = EMBEDDED_TASKS if source == EMBEDDED else seen
            hint = did_you_mean(task, found) if found else "; none of the requested tasks is in it"
            raise ValueError(f"no record of the task {task!r} in split {split!r} of {source}{hint}")


def _read_folder(root: Path, split: str, wanted: Sequence[str] | None, per_task: int | None) -> Iterator[Record]:
    """Yield the records of a split in a folder, task by task; files of other tasks are not opened."""
    if not root.is_dir():
        raise ValueError(f"{root} is neither SMolInstruct's data.zip nor a folder of records")
    mixed: list[Path] = []
    by_task: dict[str, list[Path]] = {}
    for path in _split_files(root, split):
        stem = _stem(path)
        if stem in CANONICAL_ORDER or (wanted is not None and stem in wanted):
            by_task.setdefault(stem, []).append(path)
        else:
            mixed.append(path)
    names = [name for name in by_task if wanted is None or name in wanted]
    if mixed:
        files = mixed + [path for name in names for path in by_task[name]]
        yield from _grouped(
            lambda tasks: (r for path in files for r in _read_file(path, split, tasks)), wanted, per_task
        )
    else:
        for name in in_canonical_order(names):
            rows = (r for path in by_task[name] for r in _read_file(path, split, (name,)))
            yield from itertools.islice(rows, per_task)


def _split_files(root: Path, split: str) -> list[Path]:
    """Return the files of a split.

    Hidden files are left out: macOS writes ``._train.jsonl`` beside each file.

    Raises:
        ValueError: the split is there twice, so that each record would count twice.
    """
    names = [name for name, meaning in SPLITS.items() if meaning == split]
    homes = [
        [path for pattern in layout for path in sorted(root.glob(pattern.format(split=name))) if path.name[0] != "."]
        for name in names
        for layout in LAYOUTS
    ]
    found = [files for files in homes if files]
    for one, other in itertools.pairwise(files[0] for files in found):
        _refuse_twice(root, split, one, other)
    files = found[0] if found else []
    by_stem: dict[str, Path] = {}
    for path in files:
        if (other := by_stem.setdefault(_plain_name(path), path)) != path:
            _refuse_twice(root, split, other, path)
    return files


def _refuse_twice(root: Path, split: str, one: Path, other: Path) -> None:
    shown = " and ".join(str(path.relative_to(root)) for path in (one, other))
    raise ValueError(f"{root}: the split {split} is there twice, as {shown}; keep one of them")


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _grouped(
    read: Callable[[Sequence[str] | None], Iterator[Record]], wanted: Sequence[str] | None, per_task: int | None
) -> Iterator[Record]:
    """Yield at most `per_task` records of each task, in canonical task order.

    More than `HELD_RECORDS` are not held in memory: the files are then read once more for each task.

    Args:
        read: yields the records of these tasks.
        wanted: the requested tasks; None: all.
        per_task: see `load_records`.
    """
    groups: dict[str, list[Record]] = {}
    held = 0
    for record in read(wanted):
        group = groups.setdefault(record["task"], [])
        if held <= HELD_RECORDS and (per_task is None or len(group) < per_task):
            group.append(record)
            held += 1
    names = in_canonical_order(groups)
    if held > HELD_RECORDS:
        groups.clear()
    for task in names:
        yield from groups[task] if groups else itertools.islice(read((task,)), per_task)


def _read_file(path: Path, split: str, wanted: Sequence[str] | None) -> Iterator[Record]:
    """Yield the complete records of one file, only those of the requested tasks."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    stem = _stem(path)
    by_file_name = {"task": stem} if stem in CANONICAL_ORDER else {}
    for number, row in rows:
        row = by_file_name | row
        if wanted is None or "task" not in row or row["task"] in wanted:
            yield complete(row, split, path, number)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 1
    try:
        with open_text(path) as handle:
            packed = path.stat().st_size if path.suffix == ".gz" else None
            for number, line in enumerate(bounded_lines(handle, packed, path.name), start=1):
                if line.strip():
                    row = parse_json(line, longest=LONGEST_LINE, repeated=True, halves=False)
                    if not isinstance(row, dict):
                        raise ValueError("not a JSON object")
                    yield number, row
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}, line {number}: {error}; copy or build the file again") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is parquet: pip install pyarrow", name=error.name) from error
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); copy or build the file again") from error


def complete(row: dict[str, Any], split: str, path: Path, number: int) -> Record:
    """Return the twelve fields of a record, checked; raise ValueError with file, line, field and remedy."""
    filled = {"target": None, **row, "split": split}
    filled["sample_id"] = row.get("sample_id") or f"{path.name}:{number}"  # early releases have none
    for name in FIELDS:
        if name not in filled:
            needed = ", ".join(FIELDS)
            raise ValueError(f"{path}, line {number}: the field {name!r} is missing; a record has {needed}")
        value = filled[name]
        if not isinstance(value, str) and not (value is None and name in NULLABLE_FIELDS):
            raise ValueError(
                f"{path}, line {number}: the field {name!r} must be text, not of the type {type(value).__name__}"
            )
    return cast(Record, {name: filled[name] for name in FIELDS})

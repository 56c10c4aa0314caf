"""Reader of SMolInstruct in its published form: data.zip, or the folder it unpacks to.

The archive does not contain complete records. For each task it has raw values (raw/<split>/<task>.jsonl), lists of
samples that select a raw line and a template (sample/instruction_tuning/<split>/<task>.json), the templates
(template/<name>/<task>.json) and the tags (core_tag/<task>.json). The loading script published with it does not run in
current releases of `datasets`, hence this reader.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from data.files import LONGEST_LINE, bounded_lines
from data.foreign import parse_json
from data.tasks import Record, Tags, in_canonical_order, tagged

REMEDY = "download data.zip again"
LARGEST_JSON = 1 << 28  # characters; the largest list of the published set has 30 million
SAMPLE_LISTS = "sample/instruction_tuning"


class Tree:
    """Folder or zip file with read-only access by relative path; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zip: zipfile.ZipFile | None = None
        if root.is_file():
            try:
                self._zip = zipfile.ZipFile(root)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{root} is not a complete zip file ({error}); {REMEDY}") from error
        self._prefix = self._find_prefix()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip:
            self._zip.close()

    def open(self, name: str) -> IO[str]:
        """Open a text file; raise ValueError if it does not exist, or if its name would lead elsewhere."""
        if {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{self.root} names {name!r}, which is no file in it; {REMEDY}")
        try:
            if self._zip:
                return io.TextIOWrapper(self._zip.open(self._prefix + name), encoding="utf-8")
            return open(self.root / self._prefix / name, encoding="utf-8")
        except (KeyError, FileNotFoundError):
            raise ValueError(f"{self.root} has no {self._prefix}{name}; {REMEDY}") from None

    def json(self, name: str) -> Any:
        """Return the content of a JSON file; raise ValueError if it is missing or not valid."""
        with self.open(name) as handle:
            try:
                text = handle.read(LARGEST_JSON)
                if len(text) == LARGEST_JSON:
                    raise ValueError(f"it has {LARGEST_JSON:,} characters or more")
                return parse_json(text, longest=LARGEST_JSON, most=LARGEST_JSON, repeated=True, halves=False)
            except ValueError as error:
                raise ValueError(f"{self.root}: {name} is not valid JSON ({error}); {REMEDY}") from error

    def packed_nbytes(self, name: str) -> int | None:
        """Return the size of a file in the zip; None: it is not packed."""
        return self._zip.getinfo(self._prefix + name).compress_size if self._zip else None

    def task_names(self, folder: str) -> list[str]:
        """Return the names of the .json files directly in a folder, without their suffix."""
        start = f"{self._prefix}{folder}/"
        if self._zip:
            names = [n[len(start) :] for n in self._zip.namelist() if n.startswith(start)]
        else:
            names = [p.name for p in (self.root / start).glob("*.json")]
        return [n.removesuffix(".json") for n in names if n.endswith(".json") and "/" not in n]

    def _find_prefix(self) -> str:
        """Return the inner folder that contains core_tag/, with a slash at its end."""
        if self._zip:
            # macOS adds a metadata file for every file below __MACOSX/
            names = sorted(n for n in self._zip.namelist() if not n.startswith("__MACOSX/"))
            parts = (n.partition("core_tag/") for n in names)
            return next((before for before, mark, _ in parts if mark and before[-1:] in ("", "/")), "")
        if (self.root / "core_tag").is_dir():
            return ""
        return next((f"{p.parent.name}/" for p in sorted(self.root.glob("*/core_tag"))), "")


def is_archive(root: Path) -> bool:
    """Return True if a path is the published archive, packed or unpacked."""
    return root.suffix == ".zip" or (root / "core_tag").is_dir() or any(root.glob("*/core_tag"))


def read_archive(root: Path, split: str, tasks: Sequence[str] | None, per_task: int | None) -> Iterator[Record]:
    """Yield the complete records of a split (train, dev, test, test_subset), task by task in canonical order.

    Args:
        root: data.zip, or the folder it unpacks to.
        split: train, dev, test or test_subset.
        tasks: task ids; None: all.
        per_task: number of records of each task at most; None: all.

    Raises:
        ValueError: a file or field is missing or damaged.
    """
    with Tree(root) as tree:
        available = tree.task_names(f"{SAMPLE_LISTS}/{split}")
        for task in in_canonical_order(name for name in available if tasks is None or name in tasks):
            try:
                yield from _read_task(tree, split, task, per_task)
            except KeyError as error:
                raise ValueError(f"{root}: the field {error} of {task} ({split}) is missing; {REMEDY}") from error
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ValueError(f"{root}: {task} ({split}) is damaged ({error}); {REMEDY}") from error


def _read_task(tree: Tree, split: str, task: str, per_task: int | None) -> Iterator[Record]:
    listing = tree.json(f"{SAMPLE_LISTS}/{split}/{task}.json")
    samples = listing["samples"][:per_task]
    templates = tree.json(f"template/{listing['template_name']}/{task}.json")
    tags = {side: cast(Tags, tuple(pair)) for side, pair in tree.json(f"core_tag/{task}.json").items()}
    # The subset is a list of lines of the whole test split.
    raw_name = f"raw/{'test' if split == 'test_subset' else split}/{task}.jsonl"
    raw = _raw_lines(tree, raw_name, {sample["idx"] for sample in samples})
    for number, sample in enumerate(samples):
        line, template = sample["idx"], sample["template_id"]
        if line not in raw or not 0 <= template < len(templates):
            raise ValueError(
                f"{tree.root}: sample {number} of {task} ({split}) refers to line {line} of {raw_name} and "
                f"to template {template}, one of which does not exist; {REMEDY}"
            )
        yield _finish(task, split, number, sample, raw[line], templates[template], tags)


def _raw_lines(tree: Tree, name: str, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Return line number (from 0) -> raw sample for the requested lines only: most are never parsed."""
    raw: dict[int, dict[str, Any]] = {}
    with tree.open(name) as handle:
        for number, line in enumerate(bounded_lines(handle, tree.packed_nbytes(name), f"{tree.root}: {name}")):
            if number in wanted:
                try:
                    raw[number] = parse_json(line, longest=LONGEST_LINE, repeated=True, halves=False)
                except ValueError as error:
                    where = f"{tree.root}: {name}, line {number + 1}"
                    raise ValueError(f"{where} is not valid JSON ({error}); {REMEDY}") from error
                if len(raw) == len(wanted):
                    break
    return raw


def _finish(
    task: str,
    split: str,
    number: int,
    sample: dict[str, Any],
    raw: dict[str, Any],
    template: dict[str, str],
    tags: dict[str, Tags],
) -> Record:
    value, target = raw["output"], None
    if isinstance(value, dict):  # one molecule, several yes-or-no questions
        target = sample["target"]
        value = value[target]
    question, answer = tagged(str(raw["input"]), tags["input"]), tagged(str(value), tags["output"])
    return {
        "input": template["input"].replace("<INPUT>", question).replace("<TARGET>", target or ""),
        "output": template["output"].replace("<OUTPUT>", answer).replace("<TARGET>", target or ""),
        "raw_input": str(raw["input"]),
        "raw_output": str(value),
        "split": split,
        "task": task,
        "input_core_tag_left": tags["input"][0],
        "input_core_tag_right": tags["input"][1],
        "output_core_tag_left": tags["output"][0],
        "output_core_tag_right": tags["output"][1],
        "target": target,
        "sample_id": sample.get("sample_id") or f"{task}.{split}.{number}",
    }

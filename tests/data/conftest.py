"""Fixtures of several tests of the data package."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.tasks import EMBEDDED_TASKS, Record


@pytest.fixture
def make_archive() -> Callable[..., Path]:
    """Return a function that writes records in the layout of the published data.zip."""
    return write_archive


def write_archive(path: Path, records: list[Record], prefix: str = "") -> Path:
    """Write records as SMolInstruct publishes them: separate raw values, sample lists, templates and tags."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record["task"], record["split"]), []).append(record)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in {task for task, _ in grouped}:
            definition = EMBEDDED_TASKS[task]
            tags = {"input": definition.input_tags, "output": definition.output_tags}
            archive.writestr(f"{prefix}core_tag/{task}.json", json.dumps(tags))
            archive.writestr(f"{prefix}template/own/{task}.json", json.dumps(wordings(task)))
        for (task, split), rows in grouped.items():
            write_split(archive, prefix, task, split, rows)
    return path


def wordings(task: str) -> list[dict[str, str]]:
    definition = EMBEDDED_TASKS[task]
    return [{"input": q, "output": a} for q in definition.questions for a in definition.answers]


def write_split(archive: zipfile.ZipFile, prefix: str, task: str, split: str, rows: list[Record]) -> None:
    raw = [{"input": r["raw_input"], "output": r["raw_output"], "task": task, "split": split} for r in rows]
    # Written backwards, so that a reader which ignores idx would be found out.
    lines = "".join(json.dumps(row) + "\n" for row in reversed(raw))
    archive.writestr(f"{prefix}raw/{split}/{task}.jsonl", lines)
    samples = [{"idx": len(rows) - 1 - i, "template_id": i % len(wordings(task))} for i in range(len(rows))]
    head = {"task": task, "template_name": "own"}
    for name, chosen in ((split, samples), ("test_subset", samples[:2])):
        if name == split or split == "test":
            content = json.dumps({**head, "split": name, "samples": chosen})
            archive.writestr(f"{prefix}sample/instruction_tuning/{name}/{task}.json", content)

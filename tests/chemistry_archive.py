"""Records in the layout of SMolInstruct's published ``data.zip``."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from data.records import load_records
from data.tasks import EMBEDDED_TASKS, SMOLINSTRUCT_FAMILIES, Record

# tasks of the published set that the embedded one does not have -> an embedded one of the same form
SIMILAR = {
    "property_prediction-lipo": "property_prediction-logp",
    **{f"property_prediction-{name}": "property_prediction-liquid" for name in ("bbbp", "clintox", "hiv", "sider")},
}


def published_records(per_task: int) -> list[Record]:
    """Return records for all tasks and splits of the published set, made from the embedded ones."""
    found = [r for split in ("train", "dev", "test") for r in load_records("embedded", split, per_task=per_task)]
    others = [{**r, "task": new} for new, old in SIMILAR.items() for r in found if r["task"] == old]
    wanted = {name for names in SMOLINSTRUCT_FAMILIES.values() for name in names}
    return [r for r in [*found, *others] if r["task"] in wanted]


def write_archive(path: Path, records: list[Record], prefix: str = "") -> Path:
    """Write records as SMolInstruct publishes them: separate raw values, sample lists, templates and tags."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record["task"], record["split"]), []).append(record)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for task in {task for task, _ in grouped}:
            definition = EMBEDDED_TASKS[SIMILAR.get(task, task)]
            tags = {"input": definition.input_tags, "output": definition.output_tags}
            archive.writestr(f"{prefix}core_tag/{task}.json", json.dumps(tags))
            archive.writestr(f"{prefix}template/own/{task}.json", json.dumps(wordings(task)))
        for (task, split), rows in grouped.items():
            write_split(archive, prefix, task, split, rows)
    return path


def wordings(task: str) -> list[dict[str, str]]:
    definition = EMBEDDED_TASKS[SIMILAR.get(task, task)]
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

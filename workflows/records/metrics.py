"""``metrics.csv``: the loss of every scored model on every task, made from the journal."""

from __future__ import annotations

from apps.base.files import write_text
from workflows.records.csv_text import csv_text
from workflows.records.journal import Journal
from workflows.records.run_directory import RunDirectory

COLUMNS = ("round", "model", "task", "loss", "samples", "tokens", "artifact")


def write_metrics(run: RunDirectory) -> None:
    """Write ``metrics.csv``."""
    write_text(run.path / "metrics.csv", csv_text(COLUMNS, metric_rows(run.journal)))


def metric_rows(journal: Journal) -> list[tuple[object, ...]]:
    """Return one row per round, model and task, the global model before the sites; the values are in ``COLUMNS``."""
    rows: dict[tuple[int, bool, str, str], tuple[object, ...]] = {}
    for record in journal.events("task_done"):
        if record["app"] != "evaluate":
            continue
        number, result = record["round"], record["result"]
        model, artifact = result["who"], result["artifact"]["sha256"]
        for task, score in result["tasks"].items():
            scored = f"{score['loss']:.6f}", score["samples"], score["tokens"]
            rows[number, model != "global", model, task] = (number, model, task, *scored, artifact)
    return [row for _, row in sorted(rows.items())]

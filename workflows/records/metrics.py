"""``metrics.csv``: the loss of every scored model on every task, made from the journal."""

from __future__ import annotations

import csv
import io
from typing import Any

from apps.base.files import write_text
from workflows.records.run_directory import RunDirectory

COLUMNS = ("round", "model", "task", "loss", "samples", "tokens", "artifact")


def metric_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """One row per round, model and task; the global model before the sites."""
    rows = [
        {
            "round": record["round"],
            "model": result["who"],
            "task": task,
            "loss": f"{score['loss']:.6f}",
            "samples": score["samples"],
            "tokens": score["tokens"],
            "artifact": result["artifact"]["sha256"],
        }
        for record in run.journal.events("task_done")
        if record["app"] == "evaluate"
        for result in [record["result"]]
        for task, score in result["tasks"].items()
    ]
    unique = {(row["round"], row["model"], row["task"]): row for row in rows}
    return sorted(unique.values(), key=lambda r: (r["round"], r["model"] != "global", r["model"], r["task"]))


def write_metrics(run: RunDirectory) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(metric_rows(run))
    write_text(run.path / "metrics.csv", text.getvalue())


def mean_losses(run: RunDirectory) -> dict[tuple[int, str], float]:
    """(round, model) -> unweighted mean of the loss over the tasks."""
    return {
        (r["round"], r["result"]["who"]): r["result"]["mean_loss"]
        for r in run.journal.events("task_done")
        if r["app"] == "evaluate"
    }

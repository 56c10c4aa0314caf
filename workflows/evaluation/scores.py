"""What an evaluation found: losses and metrics by model and task, as a file and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from data.tasks import metric_kind

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LOSS, ANSWERED, RMSE = "loss", "answered", "rmse"
LOWER_IS_BETTER = (LOSS, RMSE)  # and no shares, as all other metrics are


@dataclass(frozen=True)
class Score:
    """One value of one model on one task; the loss in nats a token, shares from 0 to 1."""

    model: str
    task: str
    metric: str
    value: float
    samples: int


def kind_of(task: str) -> str | None:
    """The kind of metric of a task, None where none is known."""
    try:
        return metric_kind(task)
    except ValueError:
        return None


def as_csv(scores: Sequence[Score]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Score))
    writer.writerows((s.model, s.task, s.metric, f"{s.value:.6f}", s.samples) for s in scores)
    return text.getvalue()


def as_table(scores: Sequence[Score]) -> Table:
    """One row for each task and metric; the loss and the number of answers stand in a task's first row."""
    from rich import box
    from rich.table import Table

    arrow = " → ".join(dict.fromkeys(s.model for s in scores))
    look = {"show_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left", "title_style": "bold"}
    table = Table(title=arrow, box=box.SIMPLE_HEAD, **look)  # type: ignore[arg-type]
    table.add_column("task", no_wrap=True)
    for name in (LOSS, "metric", "value", ANSWERED):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for task in dict.fromkeys(s.task for s in scores):
        add_task(table, task, [s for s in scores if s.task == task])
    table.add_section()
    table.add_row("mean over the tasks", values_of(mean_losses(scores), LOSS), "", "", "")
    return table


def add_task(table: Table, task: str, scores: Sequence[Score]) -> None:
    """The rows of one task."""
    from rich.text import Text

    own = [m for m in dict.fromkeys(s.metric for s in scores) if m not in (LOSS, ANSWERED)]
    nothing = RMSE if kind_of(task) == "number" else "–"  # there is no error where there is no number
    for row, metric in enumerate(own or [nothing]):
        name = metric.removeprefix("morgan_").replace("_", " ")
        left = (Text(task), values_of(scores, LOSS)) if row == 0 else ("", "")
        table.add_row(*left, name, values_of(scores, metric), answers_of(scores) if row == 0 else "")


def values_of(scores: Sequence[Score], metric: str) -> Text:
    """The values of one metric, base before trained; green where the trained model is better, red where worse."""
    from rich.text import Text

    values = {s.model: s.value for s in scores if s.metric == metric}
    words = " → ".join(value_text(metric, values.get(model)) for model in dict.fromkeys(s.model for s in scores))
    if len(set(values.values())) < 2:
        return Text(words)
    base, trained = values.values()
    return Text(words, style="green" if (trained < base) == (metric in LOWER_IS_BETTER) else "red")


def value_text(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric in LOWER_IS_BETTER:
        return f"{value:.3f}" if metric == LOSS else f"{value:.3g}"
    return f"{value:.0%}"


def answers_of(scores: Sequence[Score]) -> str:
    """How many samples got an answer of the right form; without a metric, how many there were."""
    found = [s for s in scores if s.metric == ANSWERED]
    counts = " → ".join(f"{s.value * s.samples:.0f}" for s in found)
    return f"{counts} of {found[0].samples}" if found else f"– of {scores[0].samples}"


def mean_losses(scores: Sequence[Score]) -> list[Score]:
    """The unweighted mean over the tasks of each model's loss."""
    found: dict[str, list[float]] = {}
    for score in scores:
        if score.metric == LOSS:
            found.setdefault(score.model, []).append(score.value)
    return [Score(model, "", LOSS, sum(values) / len(values), 0) for model, values in found.items()]


def remarks(scores: Sequence[Score]) -> list[str]:
    """What one must know of metrics that are not in the table."""
    tasks = list(dict.fromkeys(s.task for s in scores))
    unknown = [task for task in tasks if kind_of(task) is None]
    lines = [f"No metric is known for {', '.join(unknown)}: the loss alone is given."] if unknown else []
    if any(kind_of(task) == "smiles" for task in tasks) and not any(s.metric == "validity" for s in scores):
        lines.append("Without rdkit, SMILES are compared as text only: pip install 'crossfed[chemistry]'")
    return lines

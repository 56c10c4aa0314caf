"""Scores of an evaluation: losses and metrics by model and task, as a file and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from data.tasks import metric_kind
from workflows.records.csv_text import csv_text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LOSS, ANSWERED, RMSE, CUT = "loss", "answered", "rmse", "cut"
LOWER_IS_BETTER = (LOSS, RMSE)
NO_SHARES = (*LOWER_IS_BETTER, "mcc")  # all other metrics are shares
NONE = "–"


@dataclass(frozen=True)
class Score:
    """One value of one model on one task; losses in nats per token, shares from 0 to 1."""

    model: str
    task: str
    metric: str
    value: float
    samples: int


def kind_of(task: str) -> str | None:
    """Return the kind of metric of a task; None if it has none."""
    try:
        return metric_kind(task)
    except ValueError:
        return None


def as_csv(scores: Sequence[Score]) -> str:
    columns = [field.name for field in fields(Score)]
    return csv_text(columns, ((*row[:3], f"{row[3]:.6f}", row[4]) for row in map(astuple, scores)))


def as_table(scores: Sequence[Score]) -> Table:
    """Return one row for each task and metric; the loss and the number of answers are in a task's first row."""
    from rich import box
    from rich.table import Table

    arrow = " → ".join(dict.fromkeys(s.model for s in scores))
    style = {"show_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left", "title_style": "bold"}
    table = Table(title=arrow, box=box.SIMPLE_HEAD, **style)  # type: ignore[arg-type]
    table.add_column("task", no_wrap=True)
    for name in (LOSS, "metric", "value", ANSWERED):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for task in dict.fromkeys(s.task for s in scores):
        _add_task(table, task, [s for s in scores if s.task == task])
    table.add_section()
    table.add_row("mean over the tasks", values_text(mean_losses(scores), LOSS), "", "", "")
    return table


def _add_task(table: Table, task: str, scores: Sequence[Score]) -> None:
    from rich.text import Text

    metrics = [m for m in dict.fromkeys(s.metric for s in scores) if m not in (LOSS, ANSWERED, CUT)]
    without = RMSE if kind_of(task) == "number" else NONE  # no answer was a number, so there is no error to show
    for row, metric in enumerate(metrics or [without]):
        name = metric.replace("_", " ")
        left = (Text(task), values_text(scores, LOSS)) if row == 0 else ("", "")
        table.add_row(*left, name, values_text(scores, metric), _answered_text(scores) if row == 0 else "")


def values_text(scores: Sequence[Score], metric: str) -> Text:
    """Return the values of one metric, base before trained; green if the trained model is better, red if worse."""
    from rich.text import Text

    values = {s.model: s.value for s in scores if s.metric == metric}
    text = " → ".join(_value_text(metric, values.get(model)) for model in dict.fromkeys(s.model for s in scores))
    if len(set(values.values())) < 2:
        return Text(text)
    base, trained = values.values()
    return Text(text, style="green" if (trained < base) == (metric in LOWER_IS_BETTER) else "red")


def _value_text(metric: str, value: float | None) -> str:
    if value is None:
        return NONE
    if metric in NO_SHARES:
        return f"{value:.3f}" if metric == LOSS else f"{value:.3g}"
    return f"{value:.0%}"


def _answered_text(scores: Sequence[Score]) -> str:
    """Return how many samples got an answer of the right form; without a metric, how many there were."""
    found = [s for s in scores if s.metric == ANSWERED]
    counts = " → ".join(f"{s.value * s.samples:.0f}" for s in found)
    return f"{counts} of {found[0].samples}" if found else f"{NONE} of {scores[0].samples}"


def mean_losses(scores: Sequence[Score]) -> list[Score]:
    """Return the unweighted mean over the tasks of each model's loss."""
    losses: dict[str, list[float]] = {}
    for score in scores:
        if score.metric == LOSS:
            losses.setdefault(score.model, []).append(score.value)
    return [Score(model, "", LOSS, sum(values) / len(values), 0) for model, values in losses.items()]


def remarks(scores: Sequence[Score]) -> list[str]:
    """Return lines about metrics that are missing in the table."""
    tasks = list(dict.fromkeys(s.task for s in scores))
    unknown = [task for task in tasks if kind_of(task) is None]
    lines = [f"No metric is known for {', '.join(unknown)}: only the loss is shown."] if unknown else []
    if any(kind_of(task) == "smiles" for task in tasks) and not any(s.metric == "validity" for s in scores):
        lines.append("Without rdkit, SMILES are compared as text only: pip install 'crossfed[chemistry]'")
    texts = {s.metric for s in scores if kind_of(s.task) == "text"}
    if "rouge_l" in texts and "bleu_2" not in texts:
        lines.append("Without nltk there is no BLEU and no METEOR: pip install 'crossfed[chemistry]'")
    return lines + [_cut_text(s) for s in scores if s.metric == CUT and s.value]


def _cut_text(score: Score) -> str:
    count = round(score.value * score.samples)
    return f"{score.task}: {count} of {score.samples} answers of the {score.model} model reached the limit of tokens."

"""Test losses of a run as tables, from its ``metrics.csv`` and, where that is older, from its journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from workflows.console.units import plural
from workflows.records.event_log import EventLog
from workflows.records.metrics import TRAIN
from workflows.records.scores import GLOBAL, ModelScore, TaskScore, model_scores

if TYPE_CHECKING:
    from pandas import DataFrame

METRICS_COLUMNS = ("round", "model", "task", "loss")


@dataclass(frozen=True)
class LossTables:
    """Losses in nats per token, one row per round and one column per (model, task).

    Attributes:
        loss: missing where it was not measured or is not finite.
        error: their standard errors; missing where they are not known.
        samples: how many are behind each loss; missing where this is not known.
        scores: of the models, by round and the global model first.
        notes: about losses that are not finite.
    """

    loss: DataFrame
    error: DataFrame
    samples: DataFrame
    scores: tuple[ModelScore, ...]
    notes: tuple[str, ...]


def read_losses(metrics: Path, journal: EventLog) -> LossTables:
    """Read the losses of a run; of repeated ones the last counts, and the journal's before the table's.

    Raises:
        UserMistake: ``metrics.csv`` is damaged.
    """
    scores = {(score.number, score.model): score for score in _from_table(metrics)}
    scores |= {(score.number, score.model): score for score in model_scores(journal.events)}
    rows = [(s.number, s.model, task, entry) for s in scores.values() for task, entry in s.tasks.items()]
    wide = {name: _wide(rows, name) for name in ("loss", "standard_error", "samples")}
    loss = wide["loss"].where(wide["loss"].abs() < float("inf"))
    in_order = tuple(sorted(scores.values(), key=lambda score: (score.number, score.model != GLOBAL)))
    return LossTables(loss, wide["standard_error"], wide["samples"], in_order, _divergence(rows))


def _from_table(path: Path) -> Iterable[ModelScore]:
    """Yield the scores in ``metrics.csv``; none if there is no such file."""
    import pandas

    if not path.exists():
        return
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        table[list(METRICS_COLUMNS)]  # all must be there
        table["round"] = table["round"].astype(int)
    except (KeyError, ValueError, OSError) as error:
        wanted = ", ".join(METRICS_COLUMNS)
        raise UserMistake(f"{path}: is not a metrics table with the columns {wanted}", file=str(path)) from error
    if "split" in table:
        table = table[table["split"] != TRAIN]
    for (number, model), rows in table.groupby(["round", "model"], sort=False):
        tasks = {str(row["task"]): _entry(row) for row in rows.to_dict("records")}
        yield ModelScore(int(number), str(model), tasks)


def _entry(row: dict[str, Any]) -> TaskScore:
    error = _number(row.get("standard_error"))
    return TaskScore(_number(row["loss"]), int(_number(row.get("samples"), 0.0)), 0, None if error != error else error)


def _number(text: Any, otherwise: float = float("nan")) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return otherwise


def _wide(rows: list[tuple[int, str, str, TaskScore]], name: str) -> DataFrame:
    import pandas

    table = pandas.DataFrame(
        [(number, model, task, getattr(entry, name)) for number, model, task, entry in rows],
        columns=["round", "model", "task", "value"],
    )
    order = list(dict.fromkeys((model, task) for _, model, task, _ in rows))
    values = pandas.to_numeric(table["value"], errors="coerce").astype(float)
    wide = table.assign(value=values.where(values != 0) if name == "samples" else values)
    wide = wide.pivot(index="round", columns=["model", "task"], values="value").sort_index()
    return wide.reindex(columns=pandas.MultiIndex.from_tuples(order, names=["model", "task"]))


def _divergence(rows: list[tuple[int, str, str, TaskScore]]) -> tuple[str, ...]:
    """Return a warning about losses that are not finite; the figures then leave them out."""
    bad = sorted(
        (number, model != GLOBAL, model, task) for number, model, task, e in rows if not abs(e.loss) < float("inf")
    )
    if not bad:
        return ()
    number, _, model, task = bad[0]
    where = f"the first in round {number} (model {model}, task {task})"
    return (f"{plural(len(bad), 'loss', 'losses')} not finite and left out, {where}.",)

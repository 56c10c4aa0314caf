"""Test losses of the models of a run, with the samples behind them, and whether the last global model is a success."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.base.errors import CrossfedError
from workflows.records.journal import Record

GLOBAL = "global"
SIGNIFICANT = 2.0  # standard errors by which two losses must differ to be called different
FLAT = 1e-3  # a loss within this share of the uniform one is that of a model that has lost everything
CLOSE = 0.01  # the same where standard errors are not known: losses of older runs


class Diverged(CrossfedError):  # noqa: N818 (named after what happened, as the errors in apps)
    """The test loss of a global model is not finite, so that further rounds are of no use."""


@dataclass(frozen=True)
class TaskScore:
    """Test loss of a model on one task in nats per token; its standard error over the samples, None if not known."""

    loss: float
    samples: int
    tokens: int = 0
    standard_error: float | None = None


@dataclass(frozen=True)
class ModelScore:
    """Test losses of one model by task.

    Attributes:
        number: of the round, or version.
        model: ``global`` or the name of a site: the global model after the site's own steps of that round.
        uniform_loss: of a model that gives every token the same probability; None if not recorded.
        artifact: SHA-256 of the model.
        time: when it was scored, in unix seconds.
    """

    number: int
    model: str
    tasks: Mapping[str, TaskScore]
    uniform_loss: float | None = None
    artifact: str = ""
    time: float = 0.0

    @property
    def mean(self) -> float:
        """Unweighted mean over the tasks."""
        return sum(score.loss for score in self.tasks.values()) / len(self.tasks)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None if that of some task is not known."""
        return mean_error([score.standard_error for score in self.tasks.values()])

    @property
    def finite(self) -> bool:
        return all(math.isfinite(score.loss) for score in self.tasks.values())


def mean_error(errors: Sequence[float | None]) -> float | None:
    """Return the standard error of the unweighted mean of independent values, None if one is not known."""
    known = [error for error in errors if error is not None and error == error]
    return math.sqrt(sum(e * e for e in known)) / len(known) if errors and len(known) == len(errors) else None


def score_of(record: Record) -> ModelScore:
    """Return the score that an evaluation has recorded."""
    result = record["result"]
    tasks = {str(task): _task_score(entry) for task, entry in (result.get("tasks") or {}).items()}
    artifact = str((result.get("artifact") or {}).get("sha256", ""))
    number, time = int(record.get("round") or 0), float(result.get("ended") or record["time"])
    return ModelScore(number, str(result.get("who", "")), tasks, result.get("uniform_loss"), artifact, time)


def _task_score(entry: Mapping[str, Any]) -> TaskScore:
    loss = math.nan if entry.get("loss") is None else float(entry["loss"])
    return TaskScore(loss, int(entry.get("samples") or 0), int(entry.get("tokens") or 0), entry.get("standard_error"))


def model_scores(records: Iterable[Record]) -> list[ModelScore]:
    """Return the scores in a journal, by round and the global model first; of repeated ones the last."""
    scores: dict[tuple[int, bool, str], ModelScore] = {}
    for record in records:
        if record["event"] == "task_done" and record.get("app") == "evaluate" and (record.get("result") or {}):
            score = score_of(record)
            if score.tasks:
                scores[score.number, score.model != GLOBAL, score.model] = score
    return [score for _, score in sorted(scores.items(), key=lambda pair: pair[0])]


def differs(difference: float, *errors: float | None, scale: float = 1.0) -> bool:
    """Return whether a difference of losses is more than the scatter of their samples.

    The samples are the same for both losses, which makes the true scatter of the difference smaller: what is called
    different here is so.
    """
    if any(error is None or error != error for error in errors):
        return abs(difference) > CLOSE * abs(scale)
    return abs(difference) > SIGNIFICANT * math.sqrt(sum(error * error for error in errors if error is not None))


@dataclass(frozen=True)
class Verdict:
    """Verdict on the last global model by its test losses.

    Attributes:
        failed: it is no success: not finite, without anything learnt, or worse than the first model.
        text: the sentence about it; empty if there is nothing to say.
    """

    failed: bool = False
    text: str = ""


def verdict(scores: Iterable[ModelScore], period: str = "round") -> Verdict:
    """Judge the last global model that was scored against the first one and against a uniform guess."""
    models = [score for score in scores if score.model == GLOBAL]
    if not models:
        return Verdict()
    first, last = models[0], models[-1]
    where = f"The global model of {period} {last.number}"
    if not last.finite:
        tasks = [task for task, score in last.tasks.items() if not math.isfinite(score.loss)]
        return Verdict(True, f"{where} has diverged: its test loss is not finite on {_named(tasks)}.")
    if last.number == first.number:
        return Verdict()
    uniform = last.uniform_loss
    if uniform and all(abs(score.loss - uniform) < FLAT * uniform for score in last.tasks.values()):
        text = f"{where} has lost what it knew: on every task its test loss is that of a uniform guess over the "
        return Verdict(True, f"{text}vocabulary, {uniform:.3f} nats per token.")
    rise = last.mean - first.mean
    if first.finite and rise > 0 and differs(rise, first.standard_error, last.standard_error, scale=first.mean):
        text = f"{where} is worse than the first one: the mean test loss rose from {first.mean:.3f} to {last.mean:.3f}."
        return Verdict(True, text)
    if uniform and last.mean > uniform:
        text = f"{where} is no better than a uniform guess over the vocabulary: its mean test loss is {last.mean:.3f}, "
        return Verdict(False, f"{text}that of the guess {uniform:.3f} nats per token.")
    return Verdict()


def require_finite(result: Mapping[str, Any], period: str) -> None:
    """Refuse a global model whose test loss is not finite.

    Args:
        result: of its evaluation; that of a site's model is never refused, because the next global model may be sound.
        period: what the campaign counts.

    Raises:
        Diverged: the test loss is not finite on some task.
    """
    bad = [task for task, entry in result["tasks"].items() if not math.isfinite(entry["loss"])]
    if bad and result["who"] == GLOBAL:
        raise Diverged(
            f"the global model of {period} {result['round']} has diverged: its test loss is not finite on "
            f"{_named(bad)}",
            remedy="A resume would end here again. Start a new run with a lower training.learning_rate",
        )


def _named(tasks: Sequence[str]) -> str:
    shown = ", ".join(tasks[:3])
    return f"{shown} and {len(tasks) - 3} more tasks" if len(tasks) > 3 else shown

"""Test losses in the journal, their scatter, and whether the last global model is a success."""

from __future__ import annotations

import math
from typing import Any

import pytest

from apps.evaluation.losses import task_loss
from workflows.records.scores import Diverged, ModelScore, TaskScore, model_scores, require_finite, verdict

UNIFORM = math.log(600)


def scored(number: int, *losses: float, error: float | None = 0.01, uniform: float | None = UNIFORM) -> ModelScore:
    tasks = {f"t{n}": TaskScore(loss, 4, 40, error) for n, loss in enumerate(losses)}
    return ModelScore(number, "global", tasks, uniform)


def test_the_standard_error_of_a_ratio_of_sums() -> None:
    """Three samples with 2, 1 and 1 tokens and sums 2, 3 and 1: loss 1.5, residuals -1, 1.5 and -0.5."""
    found = task_loss([(2.0, 2), (3.0, 1), (1.0, 1)])
    assert (found["loss"], found["samples"], found["tokens"]) == (1.5, 3, 4)
    assert found["standard_error"] == pytest.approx(math.sqrt(3 / 2 * (1.0 + 2.25 + 0.25)) / 4)
    assert task_loss([(2.0, 2)])["standard_error"] is None
    assert math.isnan(task_loss([(math.nan, 2), (1.0, 1)])["loss"])
    assert task_loss([(1e200, 2), (1.0, 1)])["standard_error"] == math.inf


@pytest.mark.parametrize(
    ("first", "last", "failed", "words"),
    [
        (scored(0, 3.0, 3.0), scored(8, 1.0, 1.0), False, ""),
        (scored(0, 3.0, 3.0), scored(8, 1.0, math.nan), True, "has diverged: its test loss is not finite on t1"),
        (scored(0, 3.0, 3.0), scored(8, math.inf, 1.0), True, "not finite on t0"),
        (scored(0, 3.0, 3.0), scored(8, 4.0, 4.0), True, "the mean test loss rose from 3.000 to 4.000"),
        (scored(0, 3.0, 3.0), scored(8, 3.01, 3.01), False, ""),  # within two standard errors
        (scored(0, 3.0, 3.0, error=None), scored(8, 3.01, 3.01, error=None), False, ""),  # not known: one per cent
        (scored(0, 3.0, 3.0, error=None), scored(8, 3.1, 3.1, error=None), True, "rose"),
        (scored(0, 6.413, 6.42), scored(8, UNIFORM, UNIFORM), True, "that of a uniform guess"),
        (scored(0, 9.0, 9.0), scored(8, 6.6, 6.5), False, "no better than a uniform guess"),
    ],
)
def test_a_model_that_is_no_success_is_called_so(first: ModelScore, last: ModelScore, failed: bool, words: str) -> None:
    found = verdict([first, last])
    assert found.failed == failed and words in found.text
    assert bool(found.text) == bool(words)


def test_only_the_untrained_model_is_no_verdict() -> None:
    assert verdict([]).text == verdict([scored(0, 7.0)]).text == ""


def evaluated(number: int, who: str, loss: float, **more: Any) -> dict[str, Any]:
    tasks = {"t": {"loss": loss, "samples": 2, "tokens": 9, **more}}
    result = {"who": who, "round": number, "tasks": tasks, "artifact": {"sha256": f"{who}{number}"}}
    return {"event": "task_done", "app": "evaluate", "round": number, "time": 5.0, "result": result}


def test_scores_of_older_runs_have_no_standard_error() -> None:
    scores = model_scores([evaluated(1, "a", 2.0), evaluated(1, "global", 1.0, standard_error=0.1)])
    assert [(s.model, s.standard_error) for s in scores] == [("global", 0.1), ("a", None)]


def test_a_global_model_that_is_not_finite_ends_the_campaign_and_a_sites_does_not() -> None:
    require_finite(evaluated(3, "polaris", math.nan)["result"], "round")
    with pytest.raises(Diverged, match="the global model of round 3 has diverged: its test loss is not finite on t"):
        require_finite(evaluated(3, "global", math.nan)["result"], "round")

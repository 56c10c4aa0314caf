"""The chemistry tasks as a problem of the virtual engine."""

from __future__ import annotations

import numpy as np
import pytest

from workflows.studies.simulation.chemistry import LEAST_SAMPLES, TRAIN_A_TASK, ChemistryTasks
from workflows.studies.simulation.problem import LocalWork


@pytest.fixture(scope="module")
def problem() -> ChemistryTasks:
    return ChemistryTasks(3, 0.1, 1)


def test_every_record_is_at_one_site_and_every_site_has_some(problem: ChemistryTasks) -> None:
    assert sum(problem.samples) <= 14 * TRAIN_A_TASK and min(problem.samples) >= LEAST_SAMPLES
    tasks = {sample.task for shard in problem.shards for sample in shard}
    assert len(tasks) == 14 == len(problem.score(problem.first()).task_losses)


def test_training_depends_on_model_site_round_and_steps_alone(problem: ChemistryTasks) -> None:
    first = problem.first()
    work = LocalWork(0, 1, 3)
    one = problem.train(first, work)
    problem.train(one, LocalWork(1, 5, 2))  # leaves the network elsewhere
    assert (problem.train(first, work) == one).all() and (problem.first() == first).all()
    assert (problem.train(first, LocalWork(0, 2, 3)) != one).any() and (
        problem.train(first, LocalWork(1, 1, 3)) != one
    ).any()
    close = problem.train(first, LocalWork(0, 1, 3, proximal_mu=100.0))
    assert np.linalg.norm(close - first) < np.linalg.norm(one - first)
    with pytest.raises(ValueError, match="plain SGD"):
        problem.train(first, work, correction=first)


def test_it_is_learned(problem: ChemistryTasks) -> None:
    before = problem.score(problem.first())
    after = problem.score(problem.train(problem.first(), LocalWork(2, 1, 20)))
    assert 6 < before.loss < 8 and after.loss < before.loss - 0.5  # from a guess among the tokens
    assert before.loss == pytest.approx(float(np.mean(before.task_losses)))

"""What a failed task costs: progress is free, a loss without any costs one, our own refusals are final."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.dataflow.errors import DependencyError
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from apps.base.errors import (
    ArtifactError,
    BlockTooShort,
    RanksLost,
    StorageError,
    TaskError,
    TrainingError,
    Unfinished,
    UpdateRefused,
    VersionMismatch,
)
from apps.training.checkpoints import FOLDER
from workflows.runtime.block_failures import BlocksFailed
from workflows.runtime.retry_policy import RetryPolicy, newest_checkpoint

LOSSES = [ManagerLost(b"m1", "node1"), WorkerLost(1, "node1"), RanksLost("a rank has ended")]
LOST = LOSSES[0]
TASK = {"executor": "alpha", "func_name": "local_train"}


class Case:
    """A policy over one site's storage, and the blocks that were given back."""

    def __init__(self, root: Path) -> None:
        self.root, self.given_back, self.written = root, list[str](), 0
        self.policy = RetryPolicy({"alpha": partial(newest_checkpoint, root)}, self.given_back.append)

    def save(self, step: int, task: str = "t1", content: str = "") -> Path:
        path = self.root / FOLDER / task / f"step-{step:09d}.{content or step}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.written += 1
        os.utime(path, (self.written, self.written))
        return path

    def cost(self, error: Exception, site: str = "alpha") -> float:
        return self.policy(error, {**TASK, "executor": site})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_an_orderly_stop_is_free_and_gives_the_block_back(case: Case) -> None:
    assert [case.cost(Unfinished("at step 3 of 9")) for _ in range(100)] == [0] * 100
    assert case.given_back == ["alpha"] * 100


def test_a_block_that_was_too_short_costs_one_and_is_given_back(case: Case) -> None:
    assert case.cost(BlockTooShort("not one step")) == 1 and case.given_back == ["alpha"]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda error: type(error).__name__)
def test_a_loss_without_progress_costs_one(case: Case, loss: Exception) -> None:
    assert [case.cost(loss), case.cost(loss)] == [1, 1] and case.given_back == []


@pytest.mark.parametrize("loss", LOSSES, ids=lambda error: type(error).__name__)
def test_progress_makes_one_loss_free(case: Case, loss: Exception) -> None:
    case.save(10)
    assert [case.cost(loss), case.cost(loss)] == [0, 1]
    case.save(20)
    assert [case.cost(loss), case.cost(loss)] == [0, 1]


def test_the_checkpoint_of_the_next_task_is_progress_though_it_has_fewer_steps(case: Case) -> None:
    case.save(900, "t1")  # of a round that was given up: nobody removes it
    assert case.cost(LOST) == 0
    case.save(10, "t2")
    assert [case.cost(LOST), case.cost(LOST)] == [0, 1]


def test_other_content_at_the_same_step_is_progress(case: Case) -> None:
    case.save(10, content="aa")
    assert case.cost(LOST) == 0
    case.save(10, content="bb")
    assert case.cost(LOST) == 0


def test_checkpoints_that_were_removed_are_no_progress(case: Case) -> None:
    saved = case.save(10)
    assert case.cost(LOST) == 0
    saved.unlink()
    assert case.cost(LOST) == 1
    case.save(10)  # the same again
    assert case.cost(LOST) == 1


@given(st.lists(st.booleans(), max_size=30))
def test_what_is_free_was_saved_in_between(tmp_path_factory: pytest.TempPathFactory, saved: list[bool]) -> None:
    case = Case(tmp_path_factory.mktemp("site"))
    for number, has_saved in enumerate(saved):
        if has_saved:
            case.save(number)
        assert case.cost(LOST) == (0 if has_saved else 1)


def test_a_loss_at_the_server_costs_one(case: Case) -> None:
    """It has no storage of its own that trainings save in."""
    case.save(10)
    assert [case.cost(LOST, "server"), case.cost(LOST, "server")] == [1, 1]


@pytest.mark.parametrize(
    "error",
    [
        UpdateRefused("too large"),
        ArtifactError("cut off"),
        StorageError("full"),
        TrainingError("nan"),
        VersionMismatch("other code"),
        TaskError("KeyError: 'x'"),
        BlocksFailed("10 in a row"),
        ValueError("x"),
        DependencyError([], "t1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_be_refused_again_is_not_tried_again(case: Case, error: Exception) -> None:
    case.save(10)
    assert case.cost(error) == math.inf and case.given_back == []


# -- the newest checkpoint --------------------------------------------------------------------------------------


def test_only_whole_checkpoints_count(case: Case) -> None:
    assert newest_checkpoint(case.root / "not" / "there") is None and newest_checkpoint(case.root) is None
    whole = case.save(3)
    for name in ("step-000000009.aa.damaged", "diary.json", ".step-000000009.aa.safetensors.part"):
        (whole.parent / name).touch()
    assert newest_checkpoint(case.root) == str(whole)


def test_one_that_is_replaced_while_it_is_looked_at(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, replaced = case.save(3), case.save(4)
    stat = Path.stat

    def vanishing(path: Path, **options: bool) -> os.stat_result:
        if path == replaced:
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", vanishing)
    assert newest_checkpoint(case.root) == str(kept)

"""What a site has done in total: every training counts, and no record of it is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.base.errors import LossNotFinite, PolicyRefused, StorageError, Unfinished
from apps.trust.usage import TaskUsage, Traces, counted, read_usage, usage_path


def usage(**changes: Any) -> TaskUsage:
    values = {"campaign": "c", "driver": None, "round": 1, "root": "/r", "steps": 5, "trainings": 1, "nodes": 2}
    return TaskUsage(**{**values, "first": 0.0, "seconds": 0.0, "begun": False, "done": False, **changes})


NOTHING = Traces(lambda: False, lambda: False)
ONE, OTHER = "a" * 32, "b" * 32


def count(
    folder: Path, task: str = ONE, check: Any = lambda _: None, there: bool = True, trained: bool = True, **changes: Any
) -> int:
    """Count a task that takes no time and return the steps of all tasks.

    ``there``: the result of an earlier training is still there; ``trained``: the task has not only returned it.
    """
    with counted(folder, task, usage(**changes), check, Traces(lambda: there, lambda: False)) as counting:
        assert read_usage(folder).steps >= 5  # before the work begins: a crash loses nothing
        counting.trained = trained
    return read_usage(folder).steps


def test_a_task_that_is_continued_counts_once(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), counted(tmp_path, ONE, usage(), lambda _: None, NOTHING):
            raise KeyboardInterrupt
    assert count(tmp_path) == 5 and count(tmp_path, OTHER, round=2) == 10
    found = read_usage(tmp_path)
    assert found.trainings == 2 and 0 < found.node_s < 2


def test_every_training_counts_and_its_record_stays(tmp_path: Path) -> None:
    """Also the same task again: its result may be deleted, or it is asked for in another folder."""

    def limit(spent: Any) -> None:
        if spent.steps + 5 > 20:
            raise PolicyRefused(rule="max_steps")

    assert count(tmp_path, check=limit) == 5
    assert count(tmp_path, check=limit, trained=False, campaign="another", round=9) == 5  # asked again: free
    assert count(tmp_path, check=limit, there=False) == 10  # its result is gone
    assert count(tmp_path, check=limit, root="/elsewhere") == 15
    assert count(tmp_path, check=limit, root="/elsewhere", trained=True) == 20  # it vanished after the look
    with pytest.raises(PolicyRefused):
        count(tmp_path, check=limit, there=False)
    assert count(tmp_path, check=limit, root="/elsewhere", trained=False) == 20  # its result may still be fetched
    record = json.loads(usage_path(tmp_path, ONE).read_text())
    assert (record["campaign"], record["round"], record["trainings"], record["done"]) == ("c", 1, 4, True)


def test_a_training_whose_checkpoints_are_gone_counts_again(tmp_path: Path) -> None:
    """A later round that finishes removes those of earlier ones."""
    for left, steps in ((True, 5), (True, 5), (False, 10), (False, 10)):
        attempt = Traces(lambda: False, lambda left=left: left)  # type: ignore[misc]
        with pytest.raises(Unfinished), counted(tmp_path, ONE, usage(), lambda _: None, attempt):
            raise Unfinished("the block ends")
        assert read_usage(tmp_path).steps == steps


def test_a_training_that_diverged_is_not_continued_for_nothing(tmp_path: Path) -> None:
    for steps in (5, 10):
        with pytest.raises(LossNotFinite), counted(tmp_path, ONE, usage(), lambda _: None, NOTHING):
            raise LossNotFinite("nan")
        assert read_usage(tmp_path).steps == steps


def test_two_tasks_cannot_both_take_the_last_steps(tmp_path: Path) -> None:
    """The other one starts between record and check."""

    def check(spent: Any) -> None:
        with pytest.raises(PolicyRefused):
            count(tmp_path, OTHER, limit)
        limit(spent)

    def limit(spent: Any) -> None:
        if spent.steps + 5 > 5:
            raise PolicyRefused(rule="max_steps")

    count(tmp_path, ONE, check)
    assert not usage_path(tmp_path, OTHER).exists()


def test_a_damaged_record_is_not_taken_for_unused(tmp_path: Path) -> None:
    usage_path(tmp_path, ONE).parent.mkdir()
    usage_path(tmp_path, "site").write_text("{")  # no record of a task
    assert read_usage(tmp_path).steps == 0
    usage_path(tmp_path, ONE).write_text("{")
    with pytest.raises(StorageError, match="operator of the site"):
        read_usage(tmp_path)

"""The progress file of a training task."""

from __future__ import annotations

import pytest

from apps.training import progress
from apps.training.progress import ProgressFile, read_progress


def test_nothing_to_read_yet(tmp_path):
    assert read_progress(tmp_path) is None
    (tmp_path / "progress.json").write_text('{"half')
    assert read_progress(tmp_path) is None


def test_phases_and_steps(tmp_path):
    file = ProgressFile(tmp_path, "t1", 2, 10, tmp_path / "out")
    file.phase("loading")
    told = read_progress(tmp_path)
    assert (told["task_id"], told["round"], told["phase"], told["step"], told["steps"]) == ("t1", 2, "loading", 0, 10)
    assert told["loss"] is None
    file.step(10, 1.5, 300.0)
    told = read_progress(tmp_path)
    assert (told["phase"], told["step"], told["loss"], told["tokens_per_s"]) == ("training", 10, 1.5, 300.0)
    file.phase("saving", 10)
    assert read_progress(tmp_path)["step"] == 10
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]


def test_steps_are_written_now_and_then_but_the_last_always(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    file = ProgressFile(tmp_path, "t1", 1, 5, tmp_path / "out")
    file.step(1, 1.0, 1.0)
    clock[0] += progress.PERIOD_S / 2
    file.step(2, 1.0, 1.0)
    assert read_progress(tmp_path)["step"] == 1
    clock[0] += progress.PERIOD_S
    file.step(3, 1.0, 1.0)
    assert read_progress(tmp_path)["step"] == 3
    file.step(5, 1.0, 1.0)
    assert read_progress(tmp_path)["step"] == 5


@pytest.mark.parametrize("obstacle", ["no folder", "a folder in its place"])
def test_record_that_cannot_be_written_is_left_out(obstacle, tmp_path):
    root = tmp_path / "root"
    if obstacle == "a folder in its place":
        (root / "progress.json").mkdir(parents=True)
    ProgressFile(root, "t1", 1, 5, root / "out").phase("loading")

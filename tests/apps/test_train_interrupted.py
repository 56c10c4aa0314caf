"""Interrupted training: by the end of the block, a request, a kill. The continued training gives the same bits."""

from __future__ import annotations

import os
import signal
import time

import pytest
import training_site
from patience import patience, wait_until
from training_site import PLACE, Site

from apps.base.errors import BlockTooShort, TrainingError, Unfinished
from apps.base.identity import Place
from apps.training import attempt as local_training
from apps.training import deadline
from apps.training.deadline import Deadline
from apps.training.progress import read_progress

STEPS = 6
HARD = {  # all that has a state which must go on
    "dropout": {"method": "fedit", "dropout": 0.3},
    "accumulate": {"accumulate": 2, "weight_decay": 0.1},
    "proximal": {"proximal_mu": 0.1, "schedule": "cosine", "total_steps": 12, "warmup_steps": 2},
    "keep_optimizer": {"keep_optimizer": True},
}


class Stopping(deadline.Deadline):
    """Deadline that stops after the steps of ``limits``, one number for each attempt."""

    limits: list[int] = []  # noqa: RUF012

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.left = self.limits.pop(0) if self.limits else 99

    def stepped(self, seconds: float) -> None:
        super().stepped(seconds)
        self.left -= 1

    def must_stop(self) -> bool:
        return self.left <= 0


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(local_training, "Deadline", Stopping)
    monkeypatch.setattr(Stopping, "limits", [])
    return Stopping.limits


def new_site(folder, changes: dict) -> tuple[Site, dict]:
    changes = {"steps": STEPS, **changes}
    adapter = {key: changes.pop(key) for key in ("method", "dropout") if key in changes}
    folder.mkdir()
    return Site(folder, **adapter), changes


@pytest.mark.parametrize("case", HARD)
def test_training_in_pieces_is_the_same_to_the_bit(case, tmp_path, limits):
    whole, changes = new_site(tmp_path / "whole", HARD[case])
    wanted = whole.train(**changes)

    site, changes = new_site(tmp_path / "pieces", HARD[case])
    limits.extend([2, 3])
    for done in (2, 5):
        with pytest.raises(Unfinished, match=rf"site aurora, round 1: .*{done} of {STEPS} steps.*next block continues"):
            site.train(**changes)
        assert site.saved_steps() == [done]
    found = site.train(**changes)

    same = ("task_id", "artifact", "steps_done", "samples", "tokens", "loss_first", "loss_last", "padding", "optimizer")
    assert {key: found[key] for key in same} == {key: wanted[key] for key in same}
    assert (wanted["attempts"], found["attempts"]) == (1, 3)
    assert site.saved_steps() == []
    if changes.get("keep_optimizer"):
        kept = [next((each.root / "optimizer").iterdir()).read_bytes() for each in (whole, site)]
        assert kept[0] == kept[1]


def test_carried_moments_do_not_count_twice(tmp_path, limits):
    """A second round, with the moments of the first, continues from its own checkpoint."""
    two, hashes = Place(site="aurora", round=2), []
    for folder, stops in (("whole", []), ("pieces", [99, 3])):
        (tmp_path / folder).mkdir()
        site = Site(tmp_path / folder)
        limits[:] = stops
        first = site.train(keep_optimizer=True)
        if stops:
            with pytest.raises(Unfinished):
                site.train(two, first["task_id"], steps=STEPS, keep_optimizer=True)
        hashes.append(site.train(two, first["task_id"], steps=STEPS, keep_optimizer=True)["artifact"]["sha256"])
    assert hashes[0] == hashes[1]


def test_a_damaged_checkpoint_restarts_the_training_with_the_same_bits(tmp_path, limits):
    wanted = Site(tmp_path / "whole").train(steps=STEPS)
    site = Site(tmp_path / "damaged")
    limits.append(4)
    with pytest.raises(Unfinished):
        site.train(steps=STEPS)
    path = next(site.root.glob("checkpoints/*/step-*"))
    path.write_bytes(path.read_bytes()[:-3])
    assert site.train(steps=STEPS)["artifact"] == wanted["artifact"]


def test_a_block_without_room_for_a_step(tmp_path, limits):
    site = Site(tmp_path)
    limits.extend([0, 2, 0])
    with pytest.raises(BlockTooShort, match=r"one step of training: 0 of 6 steps .*longer walltime"):
        site.train(steps=STEPS)
    with pytest.raises(Unfinished):
        site.train(steps=STEPS)
    with pytest.raises(BlockTooShort, match=r"2 of 6 steps"):
        site.train(steps=STEPS)
    assert site.train(steps=STEPS)["attempts"] == 4


def test_partial_work_is_returned_as_partial_work(tmp_path, limits):
    site = Site(tmp_path)
    limits.extend([0, 2])
    with pytest.raises(BlockTooShort):
        site.train(steps=STEPS, on_walltime="return")
    partial = site.train(steps=STEPS, on_walltime="return")
    assert (partial["steps_done"], partial["steps_asked"], partial["samples"]) == (2, STEPS, 4)
    assert read_progress(site.root)["step"] == 2
    assert site.saved_steps() == []
    assert site.train(steps=STEPS, on_walltime="return") == partial | {"reused": True}
    whole = site.train(steps=STEPS)  # who asks for all of it is not served with a part
    assert (whole["steps_done"], whole["task_id"]) == (STEPS, partial["task_id"])
    assert site.train(steps=STEPS, on_walltime="return") == whole | {"reused": True}


def test_a_request_ends_with_the_step_in_which_its_time_passes(tmp_path, monkeypatch):
    seen = iter([999.0] * 4 + [1000.0] * 99)
    monkeypatch.setattr(deadline.Deadline, "is_over", lambda self: self.until is not None and next(seen) >= self.until)
    site = Site(tmp_path)
    cut = site.train(steps=STEPS, until=1000.0)
    assert (cut["steps_done"], cut["steps_asked"], cut["samples"]) == (5, STEPS, 10)
    assert site.saved_steps() == []
    assert site.train(steps=STEPS, until=1000.0) == cut | {"reused": True}  # its time is over
    assert site.train(steps=STEPS)["steps_done"] == STEPS  # who asks for all of it is not served with a part


def test_a_request_that_is_over_already_does_one_step(tmp_path):
    late = Site(tmp_path).train(steps=STEPS, until=time.time() - 60)
    assert (late["steps_done"], late["steps_asked"]) == (1, STEPS)


def test_the_walltime_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(deadline, "MARGIN_S", 1.0)
    step_s = patience(0.3)
    monkeypatch.setenv("CROSSFED_BLOCK_END", str(time.time() + 20 * step_s))
    monkeypatch.setattr("apps.training.loop.update_parameters", lambda *_: time.sleep(step_s))
    site = Site(tmp_path)
    with pytest.raises(Unfinished, match="of 100 steps"):
        site.train(steps=100)
    assert time.time() < float(os.environ["CROSSFED_BLOCK_END"])
    assert 0 < site.saved_steps()[0] < 20


def test_saving_now_and_then(tmp_path, monkeypatch):
    saved = []
    save = training_site.local_train.__globals__["attempt_task"].__globals__["Checkpoints"].save

    def record(self, group, state, tensors):
        save(self, group, state, tensors)
        saved.append(state.steps)

    monkeypatch.setattr("apps.training.checkpoints.Checkpoints.save", record)
    honest = Deadline.saved  # a save that costs nothing is never dearer than the rest of the training
    monkeypatch.setattr(Deadline, "saved", lambda self, _seconds: honest(self, 0.0))
    wanted = Site(tmp_path / "never").train(steps=STEPS)
    assert saved == []
    often = Site(tmp_path / "often").train(steps=STEPS, checkpoint_s=1e-6)
    assert saved == list(range(1, STEPS))  # the last step is saved as the update
    assert often["artifact"] == wanted["artifact"]


def test_a_loss_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "apps.training.loop.summed_loss", lambda _forward, network, _batch: next(network.parameters()).sum() / 0
    )
    site = Site(tmp_path)
    with pytest.raises(TrainingError, match="at step 1"):
        site.train(checkpoint_s=1e-6)
    assert site.saved_steps() == []


@pytest.mark.campaign
def test_a_kill_loses_no_more_than_the_steps_since_the_last_save(tmp_path):
    wanted = Site(tmp_path / "whole").train(steps=40)
    site = Site(tmp_path / "killed")
    for least in (5, 20):
        process = site.start(slow_s=0.05, steps=40, checkpoint_s=0.2)
        wait_until(lambda least=least: max(site.saved_steps(), default=0) >= least)
        process.kill()
        process.wait()
    saved = max(site.saved_steps())
    assert not site.outcome_path.exists()
    seen = []
    report = local_training.ProgressFile.step
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local_training.ProgressFile, "step", lambda self, *a: (seen.append(a[0]), report(self, *a)))
        found = site.train(steps=40, checkpoint_s=0.2)
    assert seen == list(range(saved + 1, 41))
    assert found["artifact"] == wanted["artifact"]
    assert (found["attempts"], found["loss_first"], found["tokens"]) == (3, wanted["loss_first"], wanted["tokens"])
    assert not list(site.root.rglob(".part*"))


@pytest.mark.campaign
@pytest.mark.parametrize("on_walltime", ["finish", "return"])
def test_sigterm_ends_the_step_saves_and_stops(on_walltime, tmp_path):
    wanted = Site(tmp_path / "whole").train(steps=30)
    site = Site(tmp_path / "asked")
    process = site.start(slow_s=0.1, steps=30, on_walltime=on_walltime)
    wait_until(lambda: (read_progress(site.root) or {"step": 0})["step"] >= 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(patience(30)) == 0
    outcome = site.outcome()
    if on_walltime == "return":
        assert 3 <= outcome["steps_done"] < 30
        return
    assert outcome["error"] == "Unfinished"
    saved = site.saved_steps()[0]
    assert f"{saved} of 30 steps" in outcome["text"]
    assert 3 <= saved < 30
    assert site.train(steps=30)["artifact"] == wanted["artifact"]


def test_storage_of_other_tasks_is_not_touched(tmp_path, limits):
    site = Site(tmp_path)
    limits.append(1)
    with pytest.raises(Unfinished):
        site.train(Place(site="aurora", round=2))
    site.train(PLACE)
    assert site.saved_steps() == [1]

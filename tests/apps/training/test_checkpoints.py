"""Step checkpoints: atomic, the newest whole one is used, removed once the task is done."""

from __future__ import annotations

import json

import pytest
import torch

from apps.base.errors import StorageError
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import Checkpoints, TrainingState, restore

ALONE = ProcessGroup("cpu")
STATE = TrainingState(steps=7, tokens=123, seconds=4.25, losses=[2.5, 1.0 / 3.0])


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path, "task", 3)


def trained(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.nn.Parameter(torch.full((3, 2), value)),
        "half": torch.nn.Parameter(torch.full((4,), value, dtype=torch.bfloat16)),
        "buffer": torch.tensor([int(value)]),
    }


def stepped(parameters: dict[str, torch.Tensor]) -> torch.optim.AdamW:
    """AdamW after a step on the floating ones."""
    optimizer = torch.optim.AdamW([p for p in parameters.values() if p.requires_grad], lr=0.1)
    for parameter in parameters.values():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def moments(parameters: dict[str, torch.Tensor], optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    return {f"{n}/{k}": v for n, p in parameters.items() for k, v in optimizer.state[p].items()}


def test_a_checkpoint_restores_the_same_bits(checkpoints):
    before = trained(0.7)
    optimizer = stepped(before)
    torch.manual_seed(5)
    checkpoints.save(ALONE, STATE, {**before, **moments(before, optimizer)})
    drawn = torch.rand(3)

    after = trained()
    other = torch.optim.AdamW([p for p in after.values() if p.requires_grad], lr=0.1)
    assert restore(checkpoints.newest(), ALONE, after, other) == STATE
    assert all(torch.equal(after[name], before[name]) for name in before)
    wanted, found = moments(before, optimizer), moments(after, other)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(torch.rand(3), drawn)


def test_older_ones_go_once_the_new_one_is_there(checkpoints, monkeypatch):
    checkpoints.save(ALONE, TrainingState(steps=9), trained())
    checkpoints.save(ALONE, TrainingState(steps=10), trained())
    assert [p.name[:14] for p in checkpoints.folder.glob("*.safetensors")] == ["step-000000010"]

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            checkpoints.save(ALONE, TrainingState(steps=11), trained())
    assert checkpoints.newest().name.startswith("step-000000010.")
    assert not list(checkpoints.folder.glob(".part*"))


@pytest.mark.parametrize("spoil", [lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: c[:-5], lambda _: b""])
def test_a_damaged_one_is_renamed_and_the_previous_one_is_used(spoil, checkpoints):
    checkpoints.save(ALONE, TrainingState(steps=9), trained())
    older = checkpoints.newest()
    content = older.read_bytes()
    checkpoints.save(ALONE, TrainingState(steps=10), trained())
    newer = checkpoints.newest()
    older.write_bytes(content)  # as if killed before it was removed
    newer.write_bytes(spoil(newer.read_bytes()))
    assert checkpoints.newest() == older
    assert newer.with_suffix(".damaged").is_file()
    older.write_bytes(spoil(content))
    assert checkpoints.newest() is None


def test_without_a_checkpoint_there_is_none_to_restore(checkpoints):
    assert checkpoints.newest() is None


def test_the_record_counts_attempts_and_keeps_times(checkpoints):
    assert checkpoints.begin() == {"round": 3, "attempts": 1, "step_s": 0.0, "save_s": 0.0}
    checkpoints.record_times(2.5, 0.5)
    assert checkpoints.begin() == {"round": 3, "attempts": 2, "step_s": 2.5, "save_s": 0.5}
    (checkpoints.folder / "diary.json").write_text("{")
    assert checkpoints.begin()["attempts"] == 1


def test_a_finished_task_leaves_nothing_behind(checkpoints, tmp_path):
    past, next_round = Checkpoints(tmp_path, "past", 2), Checkpoints(tmp_path, "next", 4)
    for each in (checkpoints, past, next_round):
        each.begin()
        each.save(ALONE, STATE, trained())
    checkpoints.discard()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["next"]


def test_the_folder_must_lie_inside_the_site(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="outside"):
        Checkpoints(tmp_path / "site", "task", 1)


def test_the_training_state_is_readable_json(checkpoints):
    from safetensors.torch import load_file

    checkpoints.save(ALONE, STATE, trained())
    text = bytes(load_file(checkpoints.newest())["standing"].tolist())
    assert json.loads(text) == {"steps": 7, "tokens": 123, "positions": 0, "seconds": 4.25, "losses": [2.5, 1.0 / 3.0]}

"""A process group of one rank, and tensors that are sharded: written whole, placed back in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import distributed
from training_site import PARALLEL, model_spec

from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.traffic import DELTA
from apps.base.errors import ArtifactError
from apps.models import model as models
from apps.models.model import Model
from apps.models.sharding import is_sharded, placed_like
from apps.ranks.parallel import parallelize
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import Checkpoints, TrainingState, restore
from apps.training.optimization import make_optimizer, optimizer_tensors

ALONE = ProcessGroup("cpu")
FULL_SHARD = PARALLEL | {"sharding": "full_shard"}


@pytest.fixture
def group() -> Iterator[None]:
    """Run torch.distributed with this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def new_model(method: str | None = None) -> Model:
    return models._load_model.__wrapped__(json.dumps(model_spec(method)), "cpu")


def test_alone_there_is_nothing_to_exchange():
    assert ALONE.total(1.5, True, 0) == [1.5, True, 0]
    assert ALONE.broadcast({"a": 1}) == {"a": 1}
    assert ALONE.gather(torch.ones(2))[0].tolist() == [1, 1]
    assert ALONE.writes
    assert not ProcessGroup("cpu", 1, 2).writes
    ALONE.barrier()


def test_what_is_written_is_what_save_tensors_writes(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(3)}
    assert ALONE.write(tmp_path / "one", tensors, "update") == save_tensors(tmp_path / "two", tensors, "update")
    with pytest.raises(ArtifactError, match="complex64"):
        ALONE.write(tmp_path, {"x": torch.zeros(1, dtype=torch.complex64)}, "update")


def test_whole_tensors_stay_whole():
    whole = torch.arange(4.0)
    assert placed_like(whole, torch.zeros(4)) is whole
    assert not is_sharded(whole)


@pytest.mark.usefixtures("group")
def test_a_change_is_added_to_a_sharded_model(tmp_path):
    model = new_model(None)
    path = artifact_path(tmp_path, save_tensors(tmp_path, model.state, "model"))
    name, before = next((n, t.detach().clone()) for n, t in model.state.items() if t.is_floating_point())
    change = save_tensors(tmp_path, {name: torch.full_like(before, 0.5, dtype=torch.bfloat16)}, DELTA)
    parallelize(model, FULL_SHARD, "no", ALONE)
    models.set_state(model, path, change=artifact_path(tmp_path, change))
    assert torch.equal(model.state[name].full_tensor(), before + 0.5)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("method", [None, "fedit", "ffa"])
def test_a_sharded_model_has_the_names_and_the_bits_of_the_whole(method, tmp_path):
    model = new_model(method)
    names = list(model.trained)
    whole = save_tensors(tmp_path, model.trained, "update")
    parallelize(model, FULL_SHARD, "no", ALONE)
    assert list(model.trained) == names
    assert all(is_sharded(tensor) for tensor in model.trained.values())
    assert ALONE.write(tmp_path / "sharded", model.trained, "update") == whole


@pytest.mark.usefixtures("group")
def test_a_checkpoint_of_a_whole_model_is_restored_into_a_sharded_one(tmp_path):
    """The file is the same, sharded or not."""
    spec = {"learning_rate": 0.1, "weight_decay": 0.0}
    model, checkpoints = new_model(), Checkpoints(tmp_path, "task", 1)
    optimizer = make_optimizer(model.trained, spec, None)
    for parameter in model.trained.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = {**model.trained, **optimizer_tensors(model.trained, optimizer)}
    checkpoints.save(ALONE, TrainingState(steps=1), saved)

    other = new_model()
    parallelize(other, FULL_SHARD, "no", ALONE)
    fresh = make_optimizer(other.trained, spec, None)
    assert restore(checkpoints.newest(), ALONE, other.trained, fresh) == TrainingState(steps=1)
    state = {**other.trained, **optimizer_tensors(other.trained, fresh)}
    found = load_tensors(artifact_path(tmp_path, ALONE.write(tmp_path, state, "checkpoint")))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)

"""Settings of the ranks that can be combined; activation checkpoints change no gradient."""

from __future__ import annotations

import json

import pytest
import torch
from training_site import PARALLEL, model_spec

from apps.base.errors import UserMistake
from apps.models import model as models
from apps.models.batches import Sample, collate
from apps.models.loss import summed_loss
from apps.ranks.parallel import fits_in_worker, load_device, parallelize
from apps.ranks.process_group import ProcessGroup


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"sharding": "ddp"}, True),
        ({"sharding": "full_shard"}, False),
        ({"sharding": "full_shard", "offload": True}, False),
        ({"sharding": "ddp", "ranks_per_node": 2}, False),
        ({"sharding": "ddp", "nodes": 2}, False),
    ],
)
def test_one_rank_that_is_not_sharded_trains_in_the_worker(changes, fits):
    assert fits_in_worker(PARALLEL | changes) is fits


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ranks_per_node": 2}, "2 ranks need sharding"),
        ({"offload": True}, "offload needs sharding .* not 'none'"),
        ({"offload": True, "sharding": "ddp", "nodes": 2}, "offload needs sharding .* not 'ddp'"),
    ],
)
def test_settings_that_exclude_each_other(changes, what):
    with pytest.raises(UserMistake, match=what):
        fits_in_worker(PARALLEL | changes)


def test_a_model_to_be_sharded_is_loaded_on_the_host():
    assert load_device(PARALLEL | {"sharding": "full_shard"}, ProcessGroup("cuda:3")) == "cpu"
    assert load_device(PARALLEL | {"sharding": "ddp"}, ProcessGroup("cuda:3")) == "cuda:3"


@pytest.mark.parametrize("method", [None, "fedit"])
def test_activation_checkpoints_change_no_gradient(method):
    samples = [Sample(tuple(range(2, 12)), 3, "t"), Sample(tuple(range(20, 27)), 2, "t")]
    model = models._load_model.__wrapped__(json.dumps(model_spec(method)), "cpu")
    model.network.train()
    batch, found = collate(samples, 0), []
    for checkpoint_activations in (False, True, False):
        ready = parallelize(
            model, PARALLEL | {"checkpoint_activations": checkpoint_activations}, "no", ProcessGroup("cpu")
        )
        layers = [m for m in model.network.modules() if getattr(m, "gradient_checkpointing", None) is not None]
        assert all(layer.gradient_checkpointing is checkpoint_activations for layer in layers)
        loss = summed_loss(ready.forward, model.network, batch)
        found.append(torch.autograd.grad(loss, list(model.trained.values()), allow_unused=True))
    for one, two, three in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_mixed_precision_is_autocast_where_nothing_is_sharded():
    model = models._load_model.__wrapped__(json.dumps(model_spec()), "cpu")
    assert parallelize(model, PARALLEL, "bf16", ProcessGroup("cpu")).autocast
    assert not parallelize(model, PARALLEL, "no", ProcessGroup("cpu")).autocast

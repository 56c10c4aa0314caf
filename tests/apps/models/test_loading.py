"""Weights that are missing are refused wherever a model is loaded, never drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import broken_models as make
import pytest
import torch

from apps.base.errors import UserMistake
from apps.models import model as models
from apps.models.loading import load_network

LACKS = "lacks the tensors? model.layers.1.mlp.up_proj.weight, which would be drawn at random"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return make.renamed(lambda name: None if "layers.1.mlp.up" in name else name)(tmp_path / "base")


def test_a_worker_refuses_them(broken: Path) -> None:
    spec = {"source": str(broken), "dtype": "float32", "seed": 1, "adapter": None, "tiny": None}
    with pytest.raises(UserMistake, match=LACKS):
        models._load_model.__wrapped__(json.dumps(spec), "cpu")


def test_the_key_and_the_remedy_are_named(broken: Path) -> None:
    with pytest.raises(UserMistake, match=rf"^sites.a.model: .* {LACKS}.*\. Give the whole model"):
        load_network(broken, torch.float32, "sites.a.model", device_map="meta")


def test_a_library_that_cannot_load_is_quoted_in_one_line(tmp_path: Path) -> None:
    folder = make.with_file("model.safetensors", b"x" * 40)(tmp_path / "base")
    with pytest.raises(UserMistake, match="model.source: .* cannot be loaded: ") as caught:
        load_network(folder, torch.float32)
    assert "\n" not in str(caught.value)


def test_whole_models_load_with_all_their_values(tmp_path: Path) -> None:
    folder = make.llama(tmp_path / "base", tie_word_embeddings=True)
    network, report = load_network(folder, torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tensors = make.load_file(folder / "model.safetensors")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())

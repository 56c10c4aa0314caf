"""Weights that are missing are refused wherever a model is loaded, never drawn at random."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import broken_models as make
import pytest
import torch
from campaigns import PROJECT

from apps.base.errors import UserMistake
from apps.models import model as models
from apps.models import streamed
from apps.models.loading import load_network, load_tokenizer

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
    folder = make.edited(num_attention_heads=3)(tmp_path / "base")
    with pytest.raises(UserMistake, match="model.source: .* cannot be loaded: ") as caught:
        load_network(folder, torch.float32)
    assert "\n" not in str(caught.value)


OWN = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": [None, "own.Mine"]}


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (make.with_code("config.json", model_type="mine", auto_map=OWN), "needs code of its own, which is not run"),
        (make.edited(attn_implementation="organisation/flash"), "names code for its attention on the hub"),
        (make.with_pickle(), "has its weights in pickles"),
        (make.with_pickle("p-1.bin", "pytorch_model.bin.index.json"), "has its weights in pickles"),
        (make.with_pickle("p-1.bin", "model.safetensors.index.json"), "names 'p-1.bin', which is no safetensors file"),
        (make.with_pickle("model.safetensors"), "has a damaged model.safetensors"),
    ],
)
@pytest.mark.parametrize(
    "load",
    [
        lambda spec, _: models._load_model.__wrapped__(json.dumps(spec), "cpu"),
        lambda spec, folder: streamed.write_first_model(spec, str(folder / "store")),
        lambda spec, _: load_network(spec["source"], torch.float32, device_map="meta"),
    ],
    ids=["a site", "the server", "a check"],
)
def test_no_code_and_no_pickle_of_a_model_is_executed(build: Any, text: str, load: Any, tmp_path: Path) -> None:
    folder = build(tmp_path / "base")
    spec: Any = {"source": str(folder), "dtype": "float32", "seed": 1, "adapter": None, "tiny": None}
    with pytest.raises(UserMistake, match=text):
        load(spec, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_no_code_of_a_tokenizer_is_executed(tmp_path: Path) -> None:
    values = {"tokenizer_class": "Mine", "auto_map": OWN}
    folder = make.with_code("tokenizer_config.json", **values)(tmp_path / "base")
    with pytest.raises(UserMistake, match="a tokenizer of the kind 'Mine', which needs code of its own"):
        load_tokenizer(folder)
    known = make.with_code("tokenizer_config.json", auto_map=OWN)(tmp_path / "other")
    assert load_tokenizer(known)("water").input_ids  # what the library has is used
    assert not (tmp_path / "executed").exists()


def test_a_model_that_the_library_knows_loads_without_the_code_beside_it(tmp_path: Path) -> None:
    folder = make.with_code("config.json", auto_map=OWN)(tmp_path / "base")
    assert load_network(folder, torch.float32)[0].config.model_type == "llama"
    assert not (tmp_path / "executed").exists()


def test_every_call_that_reads_files_of_others_is_in_one_module() -> None:
    """There it is written out that no code of theirs is run, and that weights are safetensors."""
    calls = ("from_pretrained", "from_config", "snapshot_download", "pipeline")
    found = []
    for path in (p for top in ("apps", "workflows", "data", "site_configs") for p in (PROJECT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
                named = ast.unparse(node.func)
                found.append((path.name, named, given.get("trust_remote_code"), given.get("use_safetensors")))
    assert sorted(found, key=str) == [
        ("checkpoint.py", "GenerationConfig.from_pretrained", None, None),  # a few numbers
        ("loading.py", "AutoConfig.from_pretrained", "False", None),
        ("loading.py", "AutoModelForCausalLM.from_config", "False", None),
        ("loading.py", "AutoTokenizer.from_pretrained", "False", None),
        ("loading.py", "loader.from_pretrained", "False", "True"),
    ]


def test_whole_models_load_with_all_their_values(tmp_path: Path) -> None:
    folder = make.llama(tmp_path / "base", tie_word_embeddings=True)
    network, report = load_network(folder, torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tensors = make.load_file(folder / "model.safetensors")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())

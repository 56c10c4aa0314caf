"""Size and shape of models, compared with transformers' own counts; sources that this machine does not have."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from workflows.planning.memory.model import ModelShape, known_config, shape_of

LORA = {"method": "fedit", "rank": 16, "alpha": 16.0, "dropout": 0.0, "targets": "all-linear", "last_layers": None}
# The published configuration of OPT-350m has norms after the layers and a narrow embedding with two projections,
# which LoRA adapts too.
COUNTS = {
    "facebook/opt-125m": (125_239_296, 2_654_208),
    "facebook/opt-350m": (331_196_416, 7_127_040),
    "facebook/opt-1.3b": (1_315_758_080, 14_155_776),
    "facebook/opt-2.7b": (2_651_596_800, 23_592_960),
    "facebook/opt-6.7b": (6_658_473_984, 37_748_736),
    "facebook/opt-13b": (12_853_473_280, 58_982_400),
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, 39_976_960),
    "meta-llama/Llama-2-13b-hf": (13_015_864_320, 62_586_880),
}


def spec(source: str, adapter: dict | None = None, tiny: dict | None = None) -> dict:
    return {"source": source, "dtype": "float32", "seed": 1, "adapter": adapter, "tiny": tiny}


def shape(source: str, adapter: dict | None = None) -> ModelShape:
    return _shape(source, json.dumps(adapter))


@lru_cache
def _shape(source: str, adapter: str) -> ModelShape:
    found = shape_of(spec(source, json.loads(adapter)))
    assert found is not None
    return found


@pytest.mark.parametrize("source", COUNTS)
def test_parameters_of_the_papers_models_and_of_their_adapters(source):
    whole, adapted = shape(source), shape(source, LORA)
    assert (whole.parameters, adapted.trained) == COUNTS[source]
    assert whole.trained == whole.parameters
    assert adapted.parameters == whole.parameters
    assert whole.outside + whole.layers * whole.layer == whole.parameters


def test_the_packaged_model_is_known_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSFED_CACHE", str(tmp_path))
    found = shape_of(spec("smollm2-135m-instruct", LORA | {"rank": 8, "last_layers": 10}))
    assert (found.parameters, found.trained) == (134_515_008, 814_080)


def test_the_shape_of_llama_2():
    llama = shape("meta-llama/Llama-2-7b-hf")
    assert (llama.layers, llama.width, llama.key_width, llama.inner, llama.vocabulary) == (32, 4096, 4096, 11008, 32000)
    assert (llama.gated, llama.adapted) == (True, False)
    assert llama.outside == 2 * 32000 * 4096 + 4096


def test_a_model_from_scratch_has_the_counts_of_the_real_one():
    from apps.models.model import load_model

    asked = spec(
        "tiny", {**LORA, "rank": 4, "targets": ["q_proj", "down_proj"], "last_layers": 1}, {"width": 64, "layers": 3}
    )
    found = shape_of(asked)
    real = load_model(asked)
    assert found.trained == sum(tensor.numel() for tensor in real.trained.values())
    whole = load_model({**asked, "adapter": None})
    assert shape_of({**asked, "adapter": None}).parameters == whole.network.num_parameters()


def test_a_folder_is_counted_by_its_configuration(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shape(str(tmp_path))
    layer = 12 * 64 * 64 + 13 * 64
    assert found.parameters == 2 * layer + (100 + 32) * 64 + 2 * 64
    assert (found.gated, found.inner, found.layer) == (False, 256, layer)
    adapted = shape(str(tmp_path), {**LORA, "rank": 2, "targets": ["c_attn"]})
    assert adapted.trained == 2 * 2 * (64 + 3 * 64)


def test_keys_narrower_than_the_width(tmp_path):
    config = {**known_config("meta-llama/Llama-2-7b-hf"), "num_key_value_heads": 8, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape(str(tmp_path)).key_width == 1024


def test_a_missing_source_is_unknown_and_never_guessed(tmp_path):
    assert shape_of(spec("nobody/nothing-7b")) is None
    assert shape_of(spec(str(tmp_path))) is None
    assert known_config("nobody/nothing-7b") is None

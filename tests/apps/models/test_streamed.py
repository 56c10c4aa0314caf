"""First and final models that are streamed: the bits that transformers loads, in little memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from campaigns import PROJECT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from apps.artifacts.store import artifact_path, load_tensors
from apps.base.errors import UserMistake
from apps.models import model as models
from apps.models import streamed
from apps.models.checkpoint import NotStreamable, open_checkpoint
from data.tokenizer import tiny_tokenizer_path

SIZE = {
    "vocab_size": 768,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "head_dim": 16,
}
OPT = {"vocab_size": 768, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48}
GPT = {"vocab_size": 768, "n_embd": 32, "n_layer": 2, "n_head": 2}
KINDS = {
    "llama": SIZE | {"tie_word_embeddings": False},
    "qwen2": SIZE | {"tie_word_embeddings": True},
    "qwen3": SIZE | {"tie_word_embeddings": True},
    "gemma2": SIZE,
    "phi3": SIZE | {"pad_token_id": 0},
    "gpt2": GPT,
    "opt": OPT | {"word_embed_proj_dim": 32},
    "gpt_neox": SIZE | {"tie_word_embeddings": False},
}


def make_folder(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    """Write a small model of a kind, with a tokenizer."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind])
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, **saving)
    PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_path()), eos_token="<eos>").save_pretrained(folder)
    return folder


def spec(source: Path, dtype: str = "float32", method: str | None = None) -> models.ModelSpec:
    adapter = {"method": method, "rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": "all-linear", "last_layers": None}
    return {"source": str(source), "dtype": dtype, "seed": 1, "adapter": adapter if method else None, "tiny": None}  # type: ignore[typeddict-item]


def loaded(given: models.ModelSpec) -> models.Model:
    """Return the model as transformers and peft load it."""
    return models._load_model.__wrapped__(json.dumps(given), "cpu")


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to load a whole model."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a whole model was loaded")

    for name in ("load_first_model", "load_model"):
        monkeypatch.setattr(streamed, name, refuse)


def written(given: models.ModelSpec, folder: Path) -> dict[str, torch.Tensor]:
    """Stream the first model, check its facts, and return its tensors."""
    first, whole = streamed.write_first_model(given, str(folder)), loaded(given)
    numbers = (whole.network.num_parameters(), sum(t.numel() for t in whole.trained.values()))
    assert (first.parameters, first.trainable) == numbers
    assert (first.full_nbytes, first.frozen) == (models.full_nbytes(whole.network), whole.fingerprint)
    return load_tensors(artifact_path(folder, first.artifact))


def equal(one: Any, other: Any) -> bool:
    """Return True if two sets of tensors have the same names, types and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_model_is_what_transformers_loads(kind: str, dtype: str, no_loading: None, tmp_path: Path) -> None:
    given = spec(make_folder(tmp_path / "base", kind), dtype)
    assert equal(written(given, tmp_path / "store"), loaded(given).state)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_bfloat16_checkpoint_in_several_files(kind: str, no_loading: None, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", kind, torch.bfloat16, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").exists()
    assert equal(written(spec(folder), tmp_path / "store"), loaded(spec(folder)).state)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "opt"])
def test_first_adapters_and_the_fingerprint_of_their_base(kind: str, no_loading: None, tmp_path: Path) -> None:
    given = spec(make_folder(tmp_path / "base", kind), "bfloat16", "fedit")
    assert equal(written(given, tmp_path / "store"), loaded(given).state)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("change", ["without", "with", "head instead of embedding"])
def test_other_names_of_the_same_weights(kind: str, change: str, no_loading: None, tmp_path: Path) -> None:
    """Checkpoints of the base model alone, or with its prefix twice as many programs write them; tied ones by head."""
    folder = make_folder(tmp_path / "base", kind)
    expected = loaded(spec(folder)).state
    tensors, network = load_file(folder / "model.safetensors"), loaded(spec(folder)).network
    prefix = network.base_model_prefix
    if change == "without":
        tensors = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items()}
    elif change == "with" and f"{prefix}.{prefix}" not in str(list(tensors)):
        tensors = {
            name if name.startswith(("lm_head", prefix)) else f"{prefix}.{name}": t for name, t in tensors.items()
        }
    elif network.config.tie_word_embeddings:
        (tied,) = [n for n, p in network.named_parameters() if p is network.get_output_embeddings().weight]
        tensors["lm_head.weight"] = tensors.pop(tied)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert equal(written(spec(folder), tmp_path / "store"), expected)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", "llama")
    tensors = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.norm.weight"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    told = r"base is incomplete: no weights for model\.norm\.weight, lm_head\.weight\. Fetch its files again"
    with pytest.raises(UserMistake, match=told):
        streamed.write_first_model(spec(folder), str(tmp_path / "store"))
    save_file(tensors | {"lm_head.weight": torch.zeros(3, 32)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserMistake, match=r"lm_head\.weight is not 768x32, as its config\.json says"):
        streamed.write_first_model(spec(folder), str(tmp_path / "store"))


def test_the_single_file_counts_beside_the_files_of_an_index(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", "llama", max_shard_size="40KB")
    tensors = {name: tensor.detach() + 1 for name, tensor in loaded(spec(folder)).state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert equal(written(spec(folder), tmp_path / "store"), loaded(spec(folder)).state)


def test_a_missing_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", "llama", max_shard_size="40KB")
    (
        folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    ).unlink()
    with pytest.raises(UserMistake, match=r"base lacks 1 of its \d files of weights, such as model-0.*safetensors"):
        streamed.write_first_model(spec(folder), str(tmp_path / "store"))


def test_experts_that_transformers_joins_are_not_streamed(tmp_path: Path) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.AutoConfig.for_model("mixtral", **SIZE, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    with pytest.raises(NotStreamable, match="transformers converts"):
        open_checkpoint(spec(tmp_path / "base"))


# -- the final model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_final_model_is_what_transformers_saves(
    kind: str, limit: int | None, no_loading: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spec(make_folder(tmp_path / "base", kind))
    first = streamed.write_first_model(given, str(tmp_path / "store"))
    if limit:
        monkeypatch.setattr(streamed, "SHARD_BYTES", limit)
    path, folder = artifact_path(tmp_path / "store", first.artifact), tmp_path / "model"
    streamed.write_final_model(given, path, folder)
    whole = loaded(given)
    models.save_for_users(whole, tmp_path / "saved")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).exists() == (tmp_path / "saved" / name).exists(), name
        if (folder / name).exists():
            assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "saved" / name).read_text()), name
    assert ((folder / "model.safetensors.index.json").exists()) == bool(limit)
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert equal(models.named_state(found, adapted=False), whole.state)
    assert AutoTokenizer.from_pretrained(folder)("CCO")["input_ids"]
    assert {f"{p.stat().st_mode & 0o777:o}" for p in folder.iterdir()} == {"644"}


def test_final_adapters_are_the_files_of_peft(no_loading: None, tmp_path: Path) -> None:
    given = spec(make_folder(tmp_path / "base", "qwen2"), "bfloat16", "fedit")
    first = streamed.write_first_model(given, str(tmp_path / "store"))
    streamed.write_final_model(given, artifact_path(tmp_path / "store", first.artifact), tmp_path / "model")
    models.save_for_users(loaded(given), tmp_path / "saved")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {p.name for p in (tmp_path / "saved").iterdir()}
    mine, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "model", tmp_path / "saved"))
    assert equal(mine, theirs)
    texts = [json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("model", "saved")]
    for text in texts:
        text["target_modules"].sort()
    assert texts[0] == texts[1]


def test_the_chat_template_of_the_base_model_is_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", "qwen2")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    given = spec(folder, "bfloat16", "fedit")
    assert models.load_tokenizer(given).chat_template
    first = streamed.write_first_model(given, str(tmp_path / "store"))
    streamed.write_final_model(given, artifact_path(tmp_path / "store", first.artifact), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template is None


# -- memory -----------------------------------------------------------------------------------------------------

PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch, transformers
from apps.artifacts.store import artifact_path
from apps.models.streamed import write_final_model, write_first_model
from apps.models import model
from transformers.models.llama import modeling_llama

small, large, dtype, folder = sys.argv[1:]
def both(source, name):
    spec = {"source": source, "dtype": dtype, "seed": 1, "adapter": None, "tiny": None}
    first = write_first_model(spec, f"{folder}/{name}")
    write_final_model(spec, artifact_path(f"{folder}/{name}", first.artifact), Path(folder) / f"{name}-model")
    return first.artifact["nbytes"]
both(small, "small")  # all libraries are loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nbytes = both(large, "large")
print(json.dumps([nbytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)]))
"""


def grown(tmp_path: Path, dtype: str) -> tuple[int, int]:
    """Return the bytes of a large model, and those that the peak memory of a process grows by when it handles it."""
    small, large = make_folder(tmp_path / "small", "llama"), tmp_path / "large"
    width = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = transformers.AutoConfig.for_model("llama", **SIZE | width | {"num_hidden_layers": 12, "head_dim": 64})
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    for path in small.glob("tokenizer*"):
        shutil.copy(path, large)
    command = [sys.executable, "-c", PROGRAM, str(small), str(large), dtype, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    nbytes, growth = json.loads(done.stdout)
    return nbytes, growth


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_does_not_grow_with_the_model(dtype: str, tmp_path: Path) -> None:
    nbytes, growth = grown(tmp_path, dtype)
    assert nbytes > 70_000_000 and growth < nbytes / 4

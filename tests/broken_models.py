"""Base models that are well-formed and wrong: each is a tiny model with one thing changed, as it is met in use."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from data.tokenizer import tiny_tokenizer_path

VOCABULARY = 768
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SHARDS = "model-0000*-of-*.safetensors"


def tokenizer(**marks: str) -> Any:
    return hf.PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_path()), **marks)


def save(folder: Path, network: Any, **options: Any) -> Path:
    network.save_pretrained(folder, **options)
    tokenizer(eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    return folder


def llama(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    options = {"max_shard_size": changes.pop("shards")} if "shards" in changes else {}
    return save(folder, hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE | changes)), **options)


def of_kind(kind: str, network: str, **size: Any) -> Callable[[Path], Path]:
    """Return what saves a random model of another kind."""

    def build(folder: Path) -> Path:
        torch.manual_seed(0)
        return save(folder, getattr(hf, network)(getattr(hf, kind)(**size)))

    return build


def edited(name: str = "config.json", **changes: Any) -> Callable[[Path], Path]:
    """Return what saves a Llama and changes values in one of its JSON files; None takes a key away."""

    def build(folder: Path) -> Path:
        path = llama(folder) / name
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return folder

    return build


def with_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (llama(folder) / name).write_bytes(content)
        return folder

    return build


def with_pickle(named: str = "pytorch_model.bin", index_name: str = "") -> Callable[[Path], Path]:
    """Return what saves a Llama with a pickle for weights that makes a folder beside it when it is unpickled."""

    def build(folder: Path) -> Path:
        (llama(folder) / "model.safetensors").unlink()
        (folder / named).write_bytes(pickle.dumps(Call(os.mkdir, str(folder.parent / "executed"))))
        if index_name:
            index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": named}}
            (folder / index_name).write_text(json.dumps(index))
        return folder

    return build


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *args: str) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def with_code(name: str, **changes: Any) -> Callable[[Path], Path]:
    """Return what saves a Llama with code of its own, which makes a folder beside it, and changes in a JSON file."""

    def build(folder: Path) -> Path:
        edited(name, **changes)(folder)
        (folder / "own.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'executed')!r})\n")
        return folder

    return build


def with_index(named: str) -> Callable[[Path], Path]:
    """Return what saves a Llama in several files, one of which its index names otherwise."""

    def build(folder: Path) -> Path:
        path = llama(folder, shards="20KB") / "model.safetensors.index.json"
        path.write_text(path.read_text().replace("model-00001-of-", named))
        return folder

    return build


def cut(name: str, by: int, **options: Any) -> Callable[[Path], Path]:
    """Return what saves a Llama and cuts bytes off the first file of this name; all of them: the file is removed."""

    def build(folder: Path) -> Path:
        path = sorted(llama(folder, **options).glob(name))[0]
        content = path.read_bytes()[:-by]
        path.write_bytes(content) if content else path.unlink()
        return folder

    return build


def renamed(change: Callable[[str], str | None]) -> Callable[[Path], Path]:
    """Return what saves a Llama and renames the tensors in its file; None takes a tensor away."""

    def build(folder: Path) -> Path:
        path = llama(folder) / "model.safetensors"
        tensors = {new: tensor for name, tensor in load_file(path).items() if (new := change(name)) is not None}
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return build


def with_tokenizer(change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        llama(folder)
        for path in folder.glob("*token*"):
            path.unlink()
        change(tokenizer(eos_token="<eos>")).save_pretrained(folder)
        return folder

    return build


def no_tokenizer(folder: Path) -> Path:
    for path in llama(folder).glob("*token*"):
        path.unlink()
    return folder


def with_pad(found: Any) -> Any:
    found.add_special_tokens({"pad_token": "[PAD]"})
    return found


def with_words(found: Any) -> Any:
    found.add_tokens(["benzene", "toluene"])
    return found


def with_image_mark(found: Any) -> Any:
    found.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return found


def adapter(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    network = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE))
    settings = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(network, settings).save_pretrained(folder)
    settings.base_model_name_or_path = "organisation/base"
    settings.save_pretrained(folder)
    return folder


def only_gguf(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.Q4_K.gguf").write_bytes(b"GGUF")
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))

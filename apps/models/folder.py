"""Check of a model's folder from its small files and the headers of its weights, without reading a tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from data.foreign import parse_json, read_start

LFS_MARK = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Fault:
    """Fault of a model and its remedy, as parts of a message."""

    what: str
    remedy: str


class BrokenFile(Exception):  # noqa: N818 (its text is one)
    """A file of a model that cannot be used; the text says why and names it."""


def require_usable(source: str, folder: Path, key: str = "model.source") -> None:
    """Check that a folder holds the whole of a model that can be fine-tuned.

    Args:
        source: as the campaign names it.
        folder: where it is.
        key: of the campaign, for the error.

    Raises:
        UserMistake: something is missing, damaged, or of a kind that cannot be fine-tuned.
    """
    _refuse(folder_fault(folder), f"{key}: {source}")


def require_loadable(source: str, folder: Path, key: str = "model.source") -> None:
    """Check that the tokenizer of a model needs no code of its own; for the arguments see ``require_usable``.

    Raises:
        UserMistake: it does.
    """
    _refuse(tokenizer_fault(folder), f"{key}: {source}")


def _refuse(fault: Fault | None, named: str) -> None:
    if fault:
        raise UserMistake(f"{named} {fault.what}", remedy=fault.remedy)


def folder_fault(folder: Path) -> Fault | None:
    """Return the first thing that makes a model's folder unusable, or None."""
    try:
        return missing_config(folder) or config_fault(read_json(folder / "config.json")) or weights_fault(folder)
    except BrokenFile as broken:
        return Fault(str(broken), "Copy the model again, and compare its files with those of its publisher")
    except OSError as error:
        return Fault(f"cannot be read: {error.strerror} ({error.filename})", "Check the path and its permissions")


def missing_config(folder: Path) -> Fault | None:
    """Return what a folder is that has no config.json, or None."""
    if (folder / "config.json").is_file():
        if not (folder / "adapter_config.json").is_file():
            return None
        return Fault(
            "has an adapter_config.json beside its config.json, so another base model would be loaded",
            "Give the base model without the adapter, or merge them: merge_and_unload of peft, then save_pretrained",
        )
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "it does not exist"
        return Fault(
            f"is not a model folder: {what}", "Give the folder with the model's config.json, tokenizer and weights"
        )
    if (folder / "adapter_config.json").is_file():
        base = (
            read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "a model that it does not name"
        )
        return Fault(
            f"is not a model but an adapter; its base is {base}",
            "Give the base model, or merge the two first: PeftModel.merge_and_unload, then save_pretrained",
        )
    found = sorted(path.name for path in folder.glob("*.gguf"))
    other = f"; {found[0]} is in the format of llama.cpp, which cannot be trained" if found else ""
    return Fault(
        f"is not a model folder: it has no config.json{other}", "Give a folder that save_pretrained has written"
    )


def config_fault(config: dict[str, Any]) -> Fault | None:
    """Return why a model of this configuration cannot be fine-tuned as a causal language model, or None.

    Args:
        config: the values of ``config.json``.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, quantised = config.get("model_type"), config.get("quantization_config")
    of_kind = _names(config.get("architectures")) or kind
    causal = "Give a causal language model, such as one of the kinds Llama, Qwen, Mistral, Gemma, OPT or GPT-2"
    if not isinstance(kind, str):
        return Fault("has a config.json without model_type", causal)
    if isinstance(quantised, dict):
        method = quantised.get("quant_method", "unknown method")
        bits = f", {quantised['bits']} bits" if "bits" in quantised else ""
        return Fault(f"is quantised ({method}{bits}) and cannot be trained", "Give the model that it was made from")
    if attention := _attention_of_others(config):
        return Fault(
            f"names code for its attention on the hub ({attention}), which is not run",
            "Remove attn_implementation from its config.json",
        )
    if kind not in CONFIG_MAPPING_NAMES:
        own = "needs code of its own, which is not run" if config.get("auto_map") else "is unknown to transformers here"
        return Fault(f"is of the kind {kind!r}, which {own}", "Upgrade transformers, or give a model of a known kind")
    if config.get("is_encoder_decoder"):
        return Fault(f"is an encoder-decoder ({of_kind}), not a causal language model", causal)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return Fault(f"is no causal language model but {of_kind}", causal)
    if _is_encoder(kind, config):
        return Fault(
            f"is an encoder ({of_kind}): each position sees the tokens that it should predict",
            f"{causal}; if this one was trained as a decoder, its config.json needs is_decoder: true",
        )
    return None


def _names(values: Any) -> str:
    return ", ".join(str(value)[:80] for value in values[:8]) if isinstance(values, list) else ""


def _attention_of_others(config: dict[str, Any]) -> str | None:
    """Return the repository on the hub that a configuration, or one within it, names for its attention, or None."""
    values = [config.get(name) for name in ("attn_implementation", "_attn_implementation")]
    texts = [text for value in values for text in (value.values() if isinstance(value, dict) else [value])]
    found = next((text for text in texts if isinstance(text, str) and "/" in text), None)
    parts = (part for part in config.values() if isinstance(part, dict))
    return found or next(filter(None, map(_attention_of_others, parts)), None)


def tokenizer_fault(folder: Path) -> Fault | None:
    """Return why a folder's tokenizer is not loaded, or None: it would need code of its own."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    path = folder / "tokenizer_config.json"
    try:
        values = read_json(path) if path.is_file() else {}
    except BrokenFile:
        return None  # the library says more
    own, kind = values.get("auto_map"), values.get("tokenizer_class")
    if not own or (isinstance(kind, str) and tokenizer_class_from_name(kind) is not None):
        return None  # what the library itself has is used
    return Fault(
        f"has a tokenizer of the kind {kind!r}, which needs code of its own, which is not run",
        "Give a model whose tokenizer transformers has: tokenizer.json, and a tokenizer_class that it knows",
    )


def _is_encoder(kind: str, config: dict[str, Any]) -> bool:
    """Return True for a kind that is trained on masked tokens unless its configuration makes it a decoder."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    default = getattr(CONFIG_MAPPING[kind](), "is_decoder", True)
    return not config.get("is_decoder", default)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BrokenFile: it is something else.
    """
    _refuse_pointer(path)
    try:
        text = read_start(path, LARGEST_HEADER, follow=True).decode()
        values = parse_json(text, longest=LARGEST_HEADER, most=LARGEST_HEADER, repeated=True)
    except UnicodeDecodeError:
        raise BrokenFile(f"has a {path.name} that is no text") from None
    except ValueError as error:
        raise BrokenFile(f"has a damaged {path.name}: {error}") from None
    if not isinstance(values, dict):
        raise BrokenFile(f"has a {path.name} that is no JSON object")
    return values


def weights_fault(folder: Path) -> Fault | None:
    """Return why a folder's weights cannot be loaded, or None.

    Raises:
        BrokenFile: one of its files is damaged or missing.
    """
    for path in sorted(folder.glob("*token*")):
        _refuse_pointer(path)
    if (folder / SINGLE).is_file():
        read_header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        for path, names in _shards(folder, INDEX):
            absent = names - read_header(path).keys()
            if absent:
                raise BrokenFile(f"lacks the tensor {min(absent)!r}, which {INDEX} expects in {path.name}")
    elif any((folder / name).is_file() for name in PICKLES):
        return Fault(
            "has its weights in pickles (.bin), which can hold code and are not loaded",
            f"Give {SINGLE}: save_pretrained of transformers writes it, where you trust the model",
        )
    else:
        return Fault(f"has no weights: neither {SINGLE} nor {INDEX}", "Copy or download the whole model")
    return None


def _shards(folder: Path, index: str) -> Iterator[tuple[Path, set[str]]]:
    """Yield the files that an index names, each with the names of its tensors."""
    values = read_json(folder / index)
    files, places = shard_names(values, index), values["weight_map"]
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise BrokenFile(f"lacks {len(absent)} of its {len(files)} files of weights, such as {absent[0]}")
    for file in files:
        yield folder / file, {name for name, place in places.items() if place == file}


def shard_names(values: Any, index: str) -> list[str]:
    """Return the names of the files of weights that an index has, in order.

    Args:
        values: of the index.
        index: its name, for the error.

    Raises:
        BrokenFile: it has none, or one that is no file of the model's own folder in the safetensors format.
    """
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise BrokenFile(f"has a damaged {index}: no weight_map")
    names = sorted(set(map(str, places.values())))
    for name in names:
        if Path(name).name != name:
            raise BrokenFile(f"has an {index} that names {name!r}, which is no file in its folder")
        if not name.endswith(".safetensors"):
            raise BrokenFile(f"has an {index} that names {name!r}, which is no safetensors file")
    return names


def read_header(path: Path) -> dict[str, Any]:
    """Return the entries of a safetensors file's header: name -> dtype, shape and place.

    Raises:
        BrokenFile: it is no such file, or not the whole of one.
    """
    _refuse_pointer(path)
    nbytes = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else LARGEST_HEADER + 1
        text = stream.read(length) if length <= LARGEST_HEADER else b""
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shown = f"{end:,}"
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        raise BrokenFile(f"has a damaged {path.name}: no safetensors header") from None
    if nbytes != end:
        raise BrokenFile(f"has a damaged {path.name}: {nbytes:,} bytes instead of {shown[:30]}")
    return entries


def _refuse_pointer(path: Path) -> None:
    if read_start(path, len(LFS_MARK), follow=True) == LFS_MARK:
        raise BrokenFile(f"has a Git LFS pointer in place of {path.name}; 'git lfs pull' fetches the file itself")

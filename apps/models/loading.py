"""Load a base model and its tokenizer, and refuse what is incomplete instead of drawing it at random.

Here are all calls of transformers that read files of others. A model's folder is data: its code is never run, and its
weights are safetensors, never pickles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake, main_line
from apps.models.folder import require_loadable, require_usable

if TYPE_CHECKING:
    import torch

PREFIXES = {  # of tensors' names -> where they come from
    "module.": "torch's DataParallel or DDP wrapped the model when it was saved",
    "_orig_mod.": "torch.compile wrapped the model when it was saved",
    "base_model.model.": "it is an adapter that was merged by half",
    "_fsdp_wrapped_module.": "FSDP wrapped the model when it was saved",
}
NAMED = 3  # tensors that a message names


def load_network(
    folder: str | Path, dtype: torch.dtype, key: str = "model.source", **options: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Load a causal language model with all of its weights, and return it with the library's report on the loading.

    Args:
        folder: of the model, or its name on the hub.
        dtype: of the weights.
        key: of the campaign, for the error.
        options: more arguments of ``from_pretrained``.

    Raises:
        UserMistake: the library cannot load it, or would draw weights at random that are missing or do not fit.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    refusals = OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError
    if "gguf_file" not in options and Path(folder).is_dir():
        require_usable(str(folder), Path(folder), key)
    loader: Any = AutoModelForCausalLM  # its annotations do not know the report
    try:
        network, report = loader.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,  # else the library asks on the terminal
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused
            **options,
        )
    except refusals as error:
        raise UserMistake(f"{key}: {folder} cannot be loaded: {main_line(error)}") from error
    require_complete(report, folder, key)
    return network, report


def load_config(folder: str | Path, **options: Any) -> Any:
    """Return the configuration of a model.

    Args:
        folder: of the model, or its name on the hub.
        options: more arguments of ``from_pretrained``.

    Raises:
        OSError, ValueError: there is none, it is of no kind that transformers knows, or its values do not fit together.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except StrictDataclassError as error:
        raise ValueError(main_line(error)) from error


def random_network(config: Any, **options: Any) -> Any:
    """Return a causal language model of a configuration; on the meta device it has no weights at all."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def require_complete(report: Mapping[str, Any], folder: str | Path, key: str = "model.source") -> None:
    """Check what a loading reports: every tensor of the network was in the files, with its shape.

    Args:
        report: as ``output_loading_info`` returns it; tied tensors count as found.
        folder: of the model, for the error.
        key: of the campaign, for the error.

    Raises:
        UserMistake: tensors are missing, or have another shape.
    """
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        raise UserMistake(
            f"{key}: {folder} lacks {_some(missing)}, which would be drawn at random{_why(missing, unused)}",
            remedy="Give the whole model, with the names of tensors that its publisher uses",
        )
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise UserMistake(
            f"{key}: {folder} does not fit its config.json: {name} has the shape {tuple(found)}, not {tuple(wanted)}"
            f"{f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''}",
            remedy="Give the config.json that belongs to these weights",
        )


def _why(missing: Iterable[str], unused: list[str]) -> str:
    """Return what the names of unused tensors say about missing ones, or ''."""
    wanted = set(missing)
    for prefix, cause in PREFIXES.items():
        if any(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in unused):
            return f"; its files have them with the prefix {prefix!r}: {cause}"
    return f"; its files have {_some(unused)} instead" if unused else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}"


def unused_text(report: Mapping[str, Any]) -> str:
    """Return a remark on tensors in the files that the network does not use, or ''."""
    unused = sorted(report["unexpected_keys"])
    return f"its files also have {_some(unused)}, which the network does not use" if unused else ""


def load_tokenizer(folder: str | Path, key: str = "model.source") -> Any:
    """Load a model's tokenizer; without a pad token of its own it pads with the end mark, which is never counted.

    Args:
        folder: of the model, or its name on the hub.
        key: of the campaign, for the error.

    Raises:
        UserMistake: there is none, it cannot be read, or it has no end mark.
    """
    if Path(folder).is_dir():
        require_loadable(str(folder), Path(folder), key)
    try:
        tokenizer = tokenizer_as_saved(folder)
    except Exception as error:  # tokenizers raises this very class for a damaged file
        raise UserMistake(
            f"{key}: {folder} has no tokenizer that can be loaded: {main_line(error)}",
            remedy="Copy tokenizer.json and tokenizer_config.json of the model into its folder",
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserMistake(
            f"{key}: the tokenizer of {folder} has no end mark, so a model could not learn where an answer ends",
            remedy="Set eos_token in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_as_saved(folder: str | Path, **options: Any) -> Any:
    """Return a tokenizer as the library reads it; for the arguments see ``load_config``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def vocabulary_fault(tokenizer: Any, rows: int) -> str | None:
    """Return why a tokenizer makes tokens that a model has no embedding for, or None.

    Added special tokens that no record is expected to hold are allowed: published multimodal families share one
    tokenizer with their text models (Gemma 3).

    Args:
        tokenizer: as loaded.
        rows: of the model's embedding.
    """
    marks = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    for name, number in marks.items():
        if number is not None and number >= rows:
            text = getattr(tokenizer, f"{name}_token")
            return f"{name}_token {text!r} is number {number:,}, outside the model's {rows:,} embeddings"
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    outside = sorted(n for n in tokenizer.get_vocab().values() if n >= rows and n not in special)
    if outside:
        text = tokenizer.convert_ids_to_tokens(outside[0])
        return (
            f"{len(outside):,} tokens of its tokenizer, such as {text!r}, lie outside the model's {rows:,} embeddings"
        )
    return None

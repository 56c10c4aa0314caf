"""Base models in safetensors files, read tensor by tensor: the network is built without weights, on the meta device.

The names in the files are matched as transformers matches them when it loads: its renamings of older names, the prefix
of the base model, and tied weights, of which a file may hold either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.store import DTYPES, TensorSpec, read_header
from apps.artifacts.streams import PieceReader, piece_ranges
from apps.base.errors import ArtifactError, UserMistake
from apps.models.folder import INDEX, SINGLE, read_json, require_usable, shard_names
from apps.models.loading import load_config, random_network
from apps.models.sources import TINY, model_folder

if TYPE_CHECKING:
    import torch

    from apps.models.model import ModelSpec


class NotStreamable(Exception):  # noqa: N818 - the model is fine, and has to be loaded whole
    """A model cannot be read tensor by tensor; the message says why."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    spec: TensorSpec


@dataclass(frozen=True)
class Checkpoint:
    """A base model in its files.

    Attributes:
        network: on the meta device, in the campaign's type.
        stored: by name of the parameter or buffer, one name for tied ones.
    """

    network: Any
    stored: Mapping[str, StoredTensor]


def open_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Find every weight of a base model in its files.

    Raises:
        NotStreamable: the files are of another format, or transformers computes weights from what they hold.
        UserMistake: weights are missing, or have another shape than the configuration says.
    """
    source = spec["source"]
    if source == TINY:
        raise NotStreamable("it is made from scratch")
    network = empty_network(spec)
    found: dict[str, StoredTensor] = {}
    rename = _renaming(network)
    for path in weight_files(source):
        try:
            header = read_header(path)
        except ArtifactError as error:
            raise NotStreamable(str(error)) from None
        found |= {rename(name): StoredTensor(path, tensor) for name, tensor in header.items()}
    return Checkpoint(network, _matched(network, found, source))


def empty_network(spec: ModelSpec) -> Any:
    """Return the network of a pretrained model without its weights.

    Raises:
        NotStreamable: weights are quantized, or some keep another type than the campaign's.
        UserMistake: it cannot be used at all: it needs code of its own, or has pickles for weights.
    """
    import torch
    from transformers import GenerationConfig

    folder, dtype = model_folder(spec["source"]), getattr(torch, spec["dtype"])
    if Path(folder).is_dir():
        require_usable(spec["source"], Path(folder))
    config = load_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise NotStreamable("its weights are quantized")
    with torch.device("meta"):
        network = random_network(config, dtype=dtype)
    network.tie_weights()
    kept = [getattr(network, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    if spec["dtype"] != "float32" and any(kept):
        raise NotStreamable("some of its weights stay in float32")
    with suppress(OSError):  # a model without one
        network.generation_config = GenerationConfig.from_pretrained(folder)
    return network


def weight_files(source: str) -> list[Path]:
    """Return the safetensors files of a model: of one file and an index, transformers takes the file.

    Raises:
        NotStreamable: it has none.
    """
    from transformers.utils import cached_file

    folder, quiet = model_folder(source), {"_raise_exceptions_for_missing_entries": False}
    single = cached_file(folder, SINGLE, **quiet)
    if single is not None:
        return [Path(single)]
    index = cached_file(folder, INDEX, **quiet)
    if index is None:
        raise NotStreamable("it has no safetensors files")
    names = shard_names(read_json(Path(index)), INDEX)
    files = {name: cached_file(folder, name, **quiet) for name in names}
    missing = [name for name, path in files.items() if path is None]
    if missing:
        raise UserMistake(f"model.source: {source} lacks {', '.join(missing)}, which its index names")
    return [Path(str(path)) for path in files.values()]


def _renaming(network: Any) -> Any:
    """Return what turns a name in a file into that of the network.

    Raises:
        NotStreamable: from the function, if transformers would compute this weight from several of a file.
    """
    renamings, converters = _conversions(network)
    known, prefix = network.state_dict(), network.base_model_prefix

    def rename(name: str) -> str:
        if renamings or converters:
            from transformers.core_model_loading import rename_source_key

            new, converted = rename_source_key(name, renamings, converters)
            if converted is not None and name not in known:
                raise NotStreamable(f"transformers converts {name}")
            name = new if _with_prefix(new, prefix, known) in known or name not in known else name
        return _with_prefix(name, prefix, known)

    return rename


def converts(network: Any) -> bool:
    """Return True if transformers saves other tensors than the network has, such as each expert by itself."""
    _, converters = _conversions(network)
    return bool(converters)


def _conversions(network: Any) -> tuple[list[Any], list[Any]]:
    """Return what transformers does with a model's files: its renamings, and its conversions of weights."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:  # an older release, which converts nothing
        return [], []
    found = list(get_model_conversion_mapping(network))
    return (
        [c for c in found if not isinstance(c, WeightConverter)],
        [c for c in found if isinstance(c, WeightConverter)],
    )


def _with_prefix(name: str, prefix: str, known: Mapping[str, Any]) -> str:
    """Return a name with the prefix of the base model added or removed, if the network has that one."""
    short = re.sub(f"^{prefix}\\.", "", name)
    candidates = (name, f"{prefix}.{name}", short)
    return next((candidate for candidate in candidates if candidate in known), name)


def names_of(network: Any) -> dict[str, list[str]]:
    """Return the name of each parameter and persistent buffer, with all its names if it is tied."""
    groups: dict[int, list[str]] = {}
    tensors: dict[str, Any] = dict(network.named_parameters(remove_duplicate=False))
    kept = set(network.state_dict())
    tensors |= {name: b for name, b in network.named_buffers(remove_duplicate=False) if name in kept}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def _matched(network: Any, found: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Return the stored tensor of every parameter and buffer of a network."""
    tensors = network.state_dict()
    matched, missing = dict[str, StoredTensor](), list[str]()
    buffers = {name for name, _ in network.named_buffers()}
    for name, names in names_of(network).items():
        present = [found[other] for other in names if other in found]
        if not present:
            if name in buffers:
                raise NotStreamable(f"{name} is computed when it is loaded")
            missing.append(name)
            continue
        if len(present) > 1 and not _same(*present[:2]):
            raise NotStreamable(f"{' and '.join(names)} are tied and differ in its files")
        if present[0].spec.shape != tuple(tensors[name].shape):
            wanted = "x".join(map(str, tensors[name].shape))
            raise UserMistake(f"model.source: {source}: {name} is not {wanted}, as its config.json says")
        matched[name] = present[0]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserMistake(
            f"model.source: {source} is incomplete: no weights for {', '.join(missing[:3])}{more}",
            remedy="Fetch its files again: missing weights would be drawn at random",
        )
    return matched


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Return True if two stored tensors hold the same bytes."""
    if not one.spec.like(other.spec):
        return False
    mine, theirs = PieceReader(), PieceReader()
    return all(
        bool((mine.read(one.path, one.spec, *part) == theirs.read(other.path, other.spec, *part)).all())
        for part in piece_ranges(one.spec.numel)
    )


def sampled_at(stored: StoredTensor, dtype: torch.dtype, step: int, count: int) -> torch.Tensor:
    """Return every ``step``-th element of a stored tensor, at most ``count``, in another type."""
    import torch

    name, width = DTYPES[stored.spec.dtype]
    with open(stored.path, "rb") as stream:
        starts = (stored.spec.begin + width * i for i in range(0, stored.spec.numel, step)[:count])
        raw = b"".join(os.pread(stream.fileno(), width, start) for start in starts)
    values = torch.frombuffer(bytearray(raw), dtype=getattr(torch, name))
    return values.to(dtype) if values.is_floating_point() else values

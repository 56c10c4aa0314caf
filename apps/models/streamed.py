"""The first and the final model of a campaign, tensor by tensor: no whole model in memory.

Where a model cannot be streamed (weights in ``.bin`` files, quantized or converted ones, a base with something merged
into it) it is loaded whole, and the log says why.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.lora import is_trained
from apps.artifacts.store import (
    Artifact,
    Header,
    Shapes,
    layout,
    read_header,
    save_tensors,
    shapes_of,
    write_artifact,
)
from apps.artifacts.streams import raw_pieces, read_tensor
from apps.base.errors import ArtifactError
from apps.models.adapter import with_adapter
from apps.models.checkpoint import (
    Checkpoint,
    NotStreamable,
    converts,
    empty_network,
    open_checkpoint,
    sampled_at,
)
from apps.models.folder import INDEX, SINGLE
from apps.models.model import (
    SAMPLED,
    ModelSpec,
    fingerprint,
    first_adapters,
    full_nbytes,
    load_first_model,
    load_model,
    load_tokenizer,
    named_state,
    quiet,
    remove_misleading,
    save_for_users,
    save_state,
    set_state,
)
from apps.models.sources import TINY

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
SHARD_BYTES = 5_000_000_000  # of a saved model's files


@dataclass(frozen=True)
class FirstModel:
    """The model that round 1 starts from.

    Attributes:
        artifact: of its trained tensors.
        full_nbytes: of all weights.
        frozen: fingerprint of the base weights; empty if all are trained.
        parameters: of the network, with adapters.
        trainable: of those that are trained.
    """

    artifact: Artifact
    full_nbytes: int
    frozen: str
    parameters: int
    trainable: int


# -- the first model ------------------------------------------------------------------------------------------------


def write_first_model(spec: ModelSpec, store: str) -> FirstModel:
    """Write the first model of a campaign into a store.

    Raises:
        UserMistake: weights are missing in its files.
        StorageError: the store cannot be written.
    """
    quiet()
    try:
        checkpoint = open_checkpoint(spec)
        return _streamed_adapter(spec, checkpoint, store) if spec["adapter"] else _streamed_model(checkpoint, store)
    except NotStreamable as reason:
        if spec["source"] != TINY:
            logger.warning("%s is loaded whole: %s", spec["source"], reason)
    model = load_first_model(spec)
    artifact = save_state(model, store, "adapter" if spec["adapter"] else "model")
    trainable = sum(t.numel() for t in model.trained.values())
    return FirstModel(
        artifact, full_nbytes(model.network), model.fingerprint, model.network.num_parameters(), trainable
    )


def _streamed_model(checkpoint: Checkpoint, store: str) -> FirstModel:
    network = checkpoint.network
    tensors: dict[str, torch.Tensor] = named_state(network, adapted=False)
    shapes = shapes_of(tensors)
    content = (
        (name, raw_pieces(checkpoint.stored[name].path, checkpoint.stored[name].spec, tensors[name].dtype))
        for name in layout(shapes)[1]
    )
    artifact = write_artifact(store, shapes, content, "model")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return FirstModel(artifact, full_nbytes(network), "", network.num_parameters(), numbers)


def _streamed_adapter(spec: ModelSpec, checkpoint: Checkpoint, store: str) -> FirstModel:
    assert spec["adapter"] is not None
    stored = {id(tensor): checkpoint.stored[name] for name, tensor in checkpoint.network.named_parameters()}
    network = with_adapter(checkpoint.network, spec["adapter"])
    tensors = first_adapters(named_state(network, adapted=True), spec["seed"])
    frozen = fingerprint(network, lambda weight, step: sampled_at(stored[id(weight)], weight.dtype, step, SAMPLED))
    trained = [t for name, t in tensors.items() if is_trained(name, spec["adapter"]["method"])]
    artifact = save_tensors(store, tensors, "adapter")
    return FirstModel(artifact, full_nbytes(network), frozen, network.num_parameters(), sum(t.numel() for t in trained))


# -- the final model ------------------------------------------------------------------------------------------------


def write_final_model(spec: ModelSpec, path: Path, folder: Path) -> None:
    """Write a model as ``from_pretrained`` of transformers or peft loads it.

    Args:
        spec: the campaign's model.
        path: of the verified artifact.
        folder: new; files go there.

    Raises:
        ArtifactError: the artifact is of another model.
    """
    quiet()
    header = read_header(path)
    try:
        if spec["source"] == TINY or any(".merged" in name for name in header):
            raise NotStreamable("adapters are merged into its weights")
        network = empty_network(spec)
        if spec["adapter"]:
            _save_adapter(spec, network, path, header, folder)
        else:
            _save_network(network, path, header, folder)
        load_tokenizer(spec).save_pretrained(folder)
        remove_misleading(folder)
    except NotStreamable as reason:
        if spec["source"] != TINY:
            logger.warning("%s is loaded whole: %s", spec["source"], reason)
        model = load_model(spec)
        set_state(model, path)
        save_for_users(model, folder)


def _save_adapter(spec: ModelSpec, network: Any, path: Path, header: Header, folder: Path) -> None:
    """Write the files of peft; the base model stays where it is."""
    assert spec["adapter"] is not None
    adapted = with_adapter(network, spec["adapter"])
    inside = {name.replace(".default.", "."): name for name, _ in adapted.named_parameters() if ".lora_" in name}
    _require_same(named_state(adapted, adapted=True), header, path)
    adapted.load_state_dict(
        {inside[name]: read_tensor(path, tensor) for name, tensor in header.items()}, strict=False, assign=True
    )
    adapted.save_pretrained(folder)


def _save_network(network: Any, path: Path, header: Header, folder: Path) -> None:
    """Write configuration and weights, in files of at most ``SHARD_BYTES``."""
    if converts(network):
        raise NotStreamable("its files have other tensors than the network")
    state = named_state(network, adapted=False)
    _require_same(state, header, path)
    folder.mkdir(parents=True)
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)
    groups = grouped(list(state), header)
    if len(groups) == 1:
        write_shard(folder / SINGLE, path, header, groups[0])
        return
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        write_shard(folder / name, path, header, group)
    where = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    total = {
        "total_parameters": sum(spec.numel for spec in header.values()),
        "total_size": sum(spec.nbytes for spec in header.values()),
    }
    index = json.dumps({"metadata": total, "weight_map": dict(sorted(where.items()))}, indent=2)
    (folder / INDEX).write_text(f"{index}\n")


def _require_same(state: Mapping[str, torch.Tensor], header: Header, path: Path) -> None:
    wanted, found = {n: tuple(t.shape) for n, t in state.items()}, {n: spec.shape for n, spec in header.items()}
    if wanted != found:
        differs = min(name for name, _ in wanted.items() ^ found.items())
        raise ArtifactError(f"artifact belongs to another model: tensor {differs!r} differs", file=str(path))


def grouped(names: list[str], header: Header) -> list[list[str]]:
    """Return the names in groups of at most ``SHARD_BYTES``, in their order; a larger tensor has one of its own."""
    groups: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name in names:
        nbytes = header[name].nbytes
        if groups[-1] and nbytes > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(name)
        room -= nbytes
    return groups


def write_shard(target: Path, source: Path, header: Header, names: list[str]) -> None:
    """Write some tensors of an artifact as a safetensors file of their own, piece by piece."""
    shapes: Shapes = {name: (header[name].dtype, header[name].shape) for name in names}
    head, positions = layout(shapes, {"format": "pt"})  # the mark that transformers asks for
    with open(target, "wb") as stream:
        stream.write(head)
        for name in positions:
            stream.writelines(raw_pieces(source, header[name]))

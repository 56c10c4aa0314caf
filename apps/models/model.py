"""The models of the tasks: built once per worker and kept loaded, their trained tensors set and read by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from apps.artifacts.lora import fresh_pair, is_trained, merged_product
from apps.artifacts.store import Artifact, raw_bytes, read_header, save_tensors
from apps.artifacts.streams import read_tensor
from apps.base.errors import ArtifactError
from apps.models import loading
from apps.models.adapter import AdapterSpec, with_adapter
from apps.models.loading import load_network
from apps.models.sharding import copy_from_file, placed_like
from apps.models.sources import TINY, model_folder
from apps.models.tiny import MAX_TOKENS, tiny_config
from data.tokenizer import tiny_tokenizer_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLED = 64  # values of each weight that a fingerprint reads


class ModelSpec(TypedDict):
    """The model that a campaign trains, in plain values."""

    source: str
    dtype: str  # of the weights
    seed: int
    adapter: AdapterSpec | None
    tiny: dict[str, int] | None  # width and layers of a model from scratch
    traffic: NotRequired[str]  # type of what travels: float32 (also if it is left out) or bfloat16


def sends_bfloat16(spec: ModelSpec) -> bool:
    """Return whether models and changes travel in bfloat16, while server and sites keep float32."""
    return spec.get("traffic") == "bfloat16"


@dataclass
class Model:
    """A model in memory with the names that its tensors have in artifacts."""

    spec: ModelSpec
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    state: dict[str, torch.Tensor]  # artifact name -> the tensor inside the network
    fingerprint: str = ""  # of the frozen weights, which are not sent: they must be the same everywhere
    originals: dict[str, torch.Tensor] = field(default_factory=dict)  # module -> its W0, once something is merged
    warm: dict[str, Any] = field(default_factory=dict)  # kept between tasks: the test set
    parallel: dict[str, Any] = field(default_factory=dict)  # how it was prepared for ranks: what that gave, by its key

    @property
    def method(self) -> str:
        """Adapter method, or "full"."""
        return self.spec["adapter"]["method"] if self.spec["adapter"] else "full"

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The tensors that are trained, by artifact name."""
        return {name: tensor for name, tensor in self.state.items() if is_trained(name, self.method)}


def load_model(spec: ModelSpec, device: str = "cpu") -> Model:
    """Return the model of a campaign; the worker keeps the last one loaded."""
    return _load_model(json.dumps(spec, sort_keys=True), device)


def load_first_model(spec: ModelSpec, device: str = "cpu") -> Model:
    """Return the model in its state at the start of a campaign, built again even if one is loaded."""
    _load_model.cache_clear()
    return load_model(spec, device)


@lru_cache(maxsize=1)
def _load_model(spec_text: str, device: str) -> Model:
    import torch

    spec: ModelSpec = json.loads(spec_text)
    quiet()
    network, tokenizer = _tiny(spec) if spec["source"] == TINY else _pretrained(spec)
    if spec["adapter"]:
        network = with_adapter(network, spec["adapter"])
    network.to(device)
    state = named_state(network, spec["adapter"] is not None)
    model = Model(spec, network, tokenizer, state, fingerprint(network) if spec["adapter"] else "")
    if spec["adapter"]:
        _restart_adapters(model)
    for name, tensor in model.state.items():
        if isinstance(tensor, torch.nn.Parameter):  # buffers travel with a model, but have no gradients
            tensor.requires_grad_(tensor.is_floating_point() and is_trained(name, model.method))
    return model


def fingerprint(network: Any, sample: Callable[[torch.Tensor, int], torch.Tensor] | None = None) -> str:
    """Return a SHA-256 over a sample of every weight of the base model, to distinguish checkpoints quickly.

    It does not detect a single changed value; for that the files of the checkpoints must be compared.

    Args:
        network: with or without adapters.
        sample: returns every n-th element of a weight, at most ``SAMPLED``; None: the weights are in memory.
    """
    take = sample or (lambda weight, step: weight.detach().reshape(-1)[::step][:SAMPLED])
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        if ".lora_" not in name:
            digest.update(f"{name}/{tuple(weight.shape)}/{weight.dtype}".encode())
            digest.update(raw_bytes(take(weight, max(1, weight.numel() // SAMPLED))))
    return digest.hexdigest()


def quiet() -> None:
    """Keep progress bars and advice of the libraries out of a worker's log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _pretrained(spec: ModelSpec) -> tuple[Any, Any]:
    import torch

    folder = model_folder(spec["source"])
    tokenizer = load_tokenizer(spec)
    return load_network(folder, getattr(torch, spec["dtype"]))[0], tokenizer


def load_tokenizer(spec: ModelSpec) -> Any:
    """Return the tokenizer of a model, without its weights, with a token to pad with."""
    from transformers import PreTrainedTokenizerFast

    if spec["source"] == TINY:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(tiny_tokenizer_path()), pad_token="<pad>", eos_token="<eos>", model_max_length=MAX_TOKENS
        )
    return loading.load_tokenizer(model_folder(spec["source"]))


def _tiny(spec: ModelSpec) -> tuple[Any, Any]:
    """Build a Llama-style model from scratch, the same for the same seed."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = load_tokenizer(spec)
    marks = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = tiny_config(spec["tiny"] or {}, len(tokenizer), **marks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec["seed"])
        return LlamaForCausalLM(config).to(getattr(torch, spec["dtype"])), tokenizer


def named_state(network: Any, adapted: bool) -> dict[str, torch.Tensor]:
    """Return artifact name -> tensor; adapters have the names that peft gives them in its files."""
    if adapted:
        pairs = [(n.replace(".default.", "."), p) for n, p in network.named_parameters() if ".lora_" in n]
        return dict(pairs)
    kept = set(network.state_dict())  # leaves out buffers that are not part of the model
    return {**dict(network.named_parameters()), **{n: b for n, b in network.named_buffers() if n in kept}}


def first_adapters(state: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return the values that every site and the server start from, drawn from the campaign's seed.

    Args:
        state: the adapters by artifact name, of which types and shapes are read.
        seed: of the campaign.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            other = state[f"{module}.lora_B.weight"]
            rank, inputs = tensor.shape
            a, b = fresh_pair(module, rank, inputs, other.shape[0], seed)
            found |= {name: a.to(tensor.dtype), f"{module}.lora_B.weight": b.to(other.dtype)}
    return found


def _restart_adapters(model: Model) -> None:
    import torch

    with torch.no_grad():
        for name, tensor in first_adapters(model.state, model.spec["seed"]).items():
            model.state[name].copy_(tensor)


def set_state(model: Model, path: Path, base: Path | None = None, change: Path | None = None) -> None:
    """Copy an artifact's tensors into the network, and add what is merged into W0 to the base weights.

    Args:
        model: the network whose tensors are overwritten.
        path: of a whole model artifact, or of a site's update.
        base: path of the model that an update was trained from; it has the tensors that are not trained.
        change: path of an artifact of changes to add.

    Raises:
        ArtifactError: the artifact is of another model.
    """
    import torch

    found = {name: (base, spec) for name, spec in read_header(base).items()} if base else {}
    found |= {name: (path, spec) for name, spec in read_header(path).items()}
    merged = {name: place for name, place in found.items() if ".merged" in name}
    shapes = {name: spec.shape for name, (_, spec) in found.items() if name not in merged}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state.items()}
    if shapes != wanted:
        differs = min(name for name, _ in shapes.items() ^ wanted.items())
        raise ArtifactError(f"artifact belongs to another model: tensor {differs!r} differs", file=str(path))
    with torch.no_grad():
        for name, tensor in model.state.items():
            copy_from_file(tensor, *found[name])
        if change:
            for name, spec in read_header(change).items():
                model.state[name].add_(placed_like(read_tensor(change, spec), model.state[name]))
        _set_merged(model, {name: read_tensor(*place) for name, place in merged.items()})


def _set_merged(model: Model, merged: Mapping[str, torch.Tensor]) -> None:
    """Set W = W0 + s M for every adapted module; W0 is kept, so that rounding errors do not add up over rounds."""
    adapter = model.spec["adapter"]
    if not adapter or not (merged or model.originals):
        return
    scale = adapter["alpha"] / adapter["rank"]
    for name in model.state:
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        layer: Any = model.network.get_submodule(module)
        weight = layer.base_layer.weight
        original = model.originals.setdefault(module, weight.detach().clone())
        product = merged_product(module, dict(merged))
        if product is None:
            weight.copy_(original)
        else:
            oriented = product.T if layer.fan_in_fan_out else product  # GPT-2's layers hold W transposed
            weight.copy_(original.float() + scale * placed_like(oriented, weight))


def save_state(model: Model, store: str | Path, kind: str, *, trained_only: bool = False) -> Artifact:
    """Write the model's tensors, or the trained ones alone, as an artifact."""
    return save_tensors(store, model.trained if trained_only else model.state, kind)


def full_nbytes(network: Any) -> int:
    """Return the bytes of the whole model in its own type: what would be sent without adapters."""
    names = {id(p): p for n, p in network.named_parameters() if ".lora_" not in n}
    return sum(p.numel() * p.element_size() for p in names.values())


def save_for_users(model: Model, folder: Path) -> None:
    """Write a model as ``from_pretrained`` of transformers or peft loads it.

    An adapter is saved as an adapter, unless something is merged into W0 or the base model is a tiny one, which exists
    nowhere else: then base and adapter become one model.
    """
    network: Any = model.network
    if model.spec["adapter"] and (model.originals or model.spec["source"] == TINY):
        network = network.merge_and_unload()
        _load_model.cache_clear()  # the loaded model has lost its adapters
    network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    remove_misleading(folder)


def remove_misleading(folder: Path) -> None:
    """Remove from a saved model what would mislead its users.

    That is peft's empty form of a model card, and the base model's chat template: no campaign trains with it, but
    programs that find it would put it around every question.
    """
    for name in ("README.md", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"  # older versions of the library keep the template here
    if settings.is_file() and "chat_template" in (found := json.loads(settings.read_text(encoding="utf-8"))):
        del found["chat_template"]
        settings.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Size and shape of a model, counted without its weights, for memory plans.

Parameters are counted on torch's meta device from the model's configuration. Configurations of models that are not on
this machine come from a small dated table. If that has none either, the shape is unknown (None), never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.models.adapter import AdapterSpec
from apps.models.model import ModelSpec
from apps.models.sources import PACKAGED, TINY, is_converted, model_folder
from apps.models.tiny import tiny_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TINY_VOCABULARY = 768  # of the tokenizer that comes with models from scratch
LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False}
OPT = {"vocab_size": 50272, "max_position_embeddings": 2048}


def _llama_2(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    size = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {"model_type": "llama", "num_attention_heads": heads, **size, **LLAMA_2}


def _opt(width: int, layers: int, heads: int, embedding: int | None = None) -> dict[str, Any]:
    size = {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {
        "model_type": "opt",
        **size,
        "word_embed_proj_dim": embedding or width,
        "do_layer_norm_before": embedding is None,
        **OPT,
    }


def known_config(source: str) -> dict[str, Any] | None:
    """Return the ``config.json`` values of the reference paper's models, as published on the hub in October 2026."""
    return {
        "meta-llama/Llama-2-7b-hf": _llama_2(4096, 11008, 32, 32),
        "meta-llama/Llama-2-13b-hf": _llama_2(5120, 13824, 40, 40),
        "facebook/opt-125m": _opt(768, 12, 12),
        "facebook/opt-350m": _opt(1024, 24, 16, embedding=512),
        "facebook/opt-1.3b": _opt(2048, 24, 32),
        "facebook/opt-2.7b": _opt(2560, 32, 32),
        "facebook/opt-6.7b": _opt(4096, 32, 32),
        "facebook/opt-13b": _opt(5120, 40, 40),
    }.get(source)


@dataclass(frozen=True)
class ModelShape:
    """Properties of a model that its memory depends on.

    Attributes:
        family: of the configuration, such as ``llama``; decides what a layer keeps for the backward pass.
        parameters: number of parameters of the base model.
        trained: number of trained parameters: all of them, or those of the adapters.
        layer: number of parameters of the largest decoder layer, the unit that sharding gathers.
        outside: number of parameters in no layer: embedding, last norm, output layer.
        layers, width, key_width, inner, vocabulary: dimensions of the network.
        gated: True if a layer has a gate beside its inner projection.
        adapted: True if adapters are trained instead of the model.
        adapted_layers: number of layers from the first adapted one on; gradients flow back to that one.
        adapter_inputs: sum of the input widths of one layer's adapted modules.
    """

    family: str
    parameters: int
    trained: int
    layer: int
    outside: int
    layers: int
    width: int
    key_width: int
    inner: int
    vocabulary: int
    gated: bool
    adapted: bool
    adapted_layers: int
    adapter_inputs: int


def shape_of(spec: ModelSpec) -> ModelShape | None:
    """Return the shape of a campaign's model, or None if this machine does not have its configuration."""
    config = config_of_spec(spec)
    return None if config is None else count(config, spec["adapter"])


def config_of_spec(spec: ModelSpec) -> PreTrainedConfig | None:
    """Return the configuration of a campaign's model, or None if this machine does not have it."""
    from transformers import AutoConfig

    source = spec["source"]
    if source == TINY:
        return _tiny_config(spec)
    if source in PACKAGED and not is_converted(source):
        return None  # the first task unpacks it
    try:
        return AutoConfig.from_pretrained(model_folder(source), local_files_only=True)
    except (OSError, ValueError):  # not in the hub's cache on this machine, or no configuration of a known kind
        values = known_config(source)
        return None if values is None else AutoConfig.for_model(**values)


def _tiny_config(spec: ModelSpec) -> PreTrainedConfig:
    """Return the configuration of a model from scratch."""
    return tiny_config(spec["tiny"] or {}, TINY_VOCABULARY)


def count(config: PreTrainedConfig, adapter: AdapterSpec | None) -> ModelShape:
    """Return the shape of a configuration's model, built on the meta device, where tensors need no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    layers = decoder_layers(network)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    total = network.num_parameters()
    named = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    inner = next(filter(None, named), 4 * config.hidden_size)
    width, heads = config.hidden_size, config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    adapted = _adapted(layers, adapter) if adapter else (total, len(layers), 0)
    return ModelShape(
        family=config.model_type,
        parameters=total,
        trained=adapted[0],
        layer=max(sizes),
        outside=total - sum(sizes),
        layers=len(layers),
        width=width,
        key_width=width * key_heads // heads,
        inner=inner,
        vocabulary=config.vocab_size,
        gated=any(name.endswith("gate_proj") for name, _ in layers[0].named_modules()),
        adapted=adapter is not None,
        adapted_layers=adapted[1],
        adapter_inputs=adapted[2],
    )


def decoder_layers(network: Any) -> list[Any]:
    """Return the repeated layers of a causal language model: its longest list of modules."""
    import torch

    lists = [module for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    return max((list(found) for found in lists), key=len)


def _adapted(layers: list[Any], adapter: AdapterSpec) -> tuple[int, int, int]:
    """Return the number of adapter parameters, of layers that gradients reach, and of adapted inputs of a layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    chosen = layers[-adapter["last_layers"] :] if adapter["last_layers"] else layers
    shapes: list[tuple[int, int]] = []
    for name, module in chosen[-1].named_modules():
        linear = isinstance(module, torch.nn.Linear | Conv1D)
        if linear and (adapter["targets"] == "all-linear" or name.rsplit(".", 1)[-1] in adapter["targets"]):
            rows, columns = module.weight.shape
            shapes.append((rows, columns) if isinstance(module, Conv1D) else (columns, rows))
    each = adapter["rank"] * sum(inputs + outputs for inputs, outputs in shapes)
    return each * len(chosen), len(chosen), sum(inputs for inputs, _ in shapes)

"""Size and shape of a model, counted without its weights, for memory plans.

Parameters are counted on torch's meta device from the model's configuration. Configurations of models that are not on
this machine come from a small dated table. If that has none either, the shape is unknown (None), never guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.models.adapter import AdapterSpec, layer_count, with_adapter
from apps.models.loading import load_config, random_network
from apps.models.model import ModelSpec
from apps.models.sources import PACKAGED, TINY, is_converted, model_folder
from apps.models.tiny import tiny_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TINY_VOCABULARY = 768  # of the tokenizer that comes with models from scratch
LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False}
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
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
    """Return the ``config.json`` values of the packaged model and of the reference paper's, as of October 2026."""
    return {
        "smollm2-135m-instruct": SMOLLM2,
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
        parameters: number of parameters of the base model.
        trained: number of trained parameters: all of them, or those of the adapters.
        layer: number of parameters of the largest decoder layer, the unit that sharding gathers.
        outside: number of parameters in no layer: embedding, last norm, output layer.
        layers, width, key_width, inner, vocabulary: dimensions of the network.
        gated: True if a layer has a gate beside its inner projection.
        adapted: True if adapters are trained instead of the model.
        config: the configuration, as JSON.
        adapter: the settings of LoRA, as JSON; ``null`` without.
    """

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
    config: str
    adapter: str


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
        return AutoConfig.for_model(**(known_config(source) or {}))  # the first task unpacks it
    try:
        return load_config(model_folder(source), local_files_only=True)
    except (OSError, ValueError):  # not in the hub's cache on this machine, or no configuration of a known kind
        values = known_config(source)
        return None if values is None else AutoConfig.for_model(**values)


def _tiny_config(spec: ModelSpec) -> PreTrainedConfig:
    """Return the configuration of a model from scratch."""
    return tiny_config(spec["tiny"] or {}, TINY_VOCABULARY)


def count(config: PreTrainedConfig, adapter: AdapterSpec | None) -> ModelShape:
    """Return the shape of a configuration's model, built on the meta device, where tensors need no memory.

    Raises:
        UserMistake: the adapter does not fit the model.
    """
    import torch

    with torch.device("meta"):
        network = random_network(config)
    layers, text = decoder_layers(network), config.get_text_config(decoder=True)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    total, embedding = network.num_parameters(), network.get_input_embeddings().weight
    gated = any(name.endswith("gate_proj") for name, _ in layers[0].named_modules())
    trained = _adapter_parameters(network, adapter) if adapter else total
    return ModelShape(
        parameters=total,
        trained=trained,
        layer=max(sizes),
        outside=total - sum(sizes),
        layers=len(layers),
        width=text.hidden_size,
        key_width=_key_width(text),
        inner=_inner_width(text),
        vocabulary=embedding.shape[0],
        gated=gated,
        adapted=adapter is not None,
        config=config.to_json_string(use_diff=False),
        adapter=json.dumps(adapter),
    )


def _inner_width(config: PreTrainedConfig) -> int:
    named = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return int(next((width for width in named if isinstance(width, int) and width), 4 * config.hidden_size))


def _key_width(config: PreTrainedConfig) -> int:
    """Return the width of a layer's keys; that of the layer for a kind without attention heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or not heads:
        return int(config.hidden_size)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return int(key_heads * (getattr(config, "head_dim", None) or config.hidden_size // heads))


def decoder_layers(network: Any) -> list[Any]:
    """Return the repeated layers of a causal language model: as many as the configuration says, else the longest list.

    Experts may be a longer list than the layers.
    """
    import torch

    lists = [list(module) for module in network.modules() if isinstance(module, torch.nn.ModuleList)]
    wanted = layer_count(network)
    return next((found for found in lists if len(found) == wanted), max(lists, key=len))


def _adapter_parameters(network: Any, adapter: AdapterSpec) -> int:
    adapted = with_adapter(network, adapter)
    return sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)

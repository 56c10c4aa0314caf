"""Measure what a model's layers keep for the backward pass, with torch's fake tensors: shapes without memory.

The network of the very configuration runs forward once for two and once for four samples, with torch's saved-tensor
hooks; the difference leaves out what does not grow with the samples: weights, their casts, tables of positions. So
any family is right that transformers has, with its own head width, norms, soft caps and experts. Fake tensors follow
torch's kernels for CPUs; what a device's fused kernels keep is the same but for small statistics.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal

Computes = Literal["float32", "autocast", "bfloat16"]
FEW, MANY = 2, 4  # samples of the two runs
STEP_BY_STEP = ("mamba", "falcon_h1", "jamba", "nemotron_h", "recurrent", "rwkv", "zamba", "hybrid", "qwen3_next")
SHORT = 64  # tokens for kinds that go through a sample one by one; what they keep grows with the tokens alone
# what libraries raise for a network that fake tensors cannot run
UNFIT = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, AssertionError)


class NotMeasured(Exception):  # noqa: N818 (its text is one)
    """The layers of a model cannot be measured on this machine; the text names the kind of model and the reason."""


@lru_cache(maxsize=64)
def kept_by_layers(config: str, adapter: str, computes: Computes, length: int) -> tuple[float, ...]:
    """Return the bytes per token that each decoder layer keeps for the backward pass.

    Args:
        config: of the model, as JSON.
        adapter: the settings of LoRA as JSON; ``null``: all parameters are trained.
        computes: the type in use: all float32, float32 under autocast, or all bfloat16.
        length: tokens of a sample.

    Raises:
        NotMeasured: fake tensors cannot run this kind of model.
    """
    kind = json.loads(config)["model_type"]
    if any(name in kind for name in STEP_BY_STEP):
        length = min(length, SHORT)
    try:
        return _measured(config, adapter, computes, length)
    except UNFIT as error:
        if computes == "bfloat16":
            raise NotMeasured(f"{kind}: {type(error).__name__} in a run with fake tensors") from error
    # experts' grouped products have no shape rule in float32; every number is half as large in bfloat16
    return tuple(2 * kept for kept in kept_by_layers(config, adapter, "bfloat16", length))


def _measured(config: str, adapter: str, computes: Computes, length: int) -> tuple[float, ...]:
    import logging

    from torch._subclasses import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs the traceback of what is caught here
    network = _meta_network(json.loads(config), json.loads(adapter), computes)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _give_fake_tensors(network)
            few, many = (_kept(network, samples, length, computes) for samples in (FEW, MANY))
    finally:
        logger.setLevel(level)
    return tuple((b - a) / ((MANY - FEW) * length) for a, b in zip(few, many, strict=True))


def _meta_network(values: dict[str, Any], adapter: Any, computes: Computes) -> Any:
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from apps.models.adapter import with_adapter
    from apps.models.loading import random_network

    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    with torch.device("meta"):
        dtype = torch.bfloat16 if computes == "bfloat16" else torch.float32
        network = random_network(config, dtype=dtype)
    return (with_adapter(network, adapter) if adapter else network).train()


def _give_fake_tensors(network: Any) -> None:
    """Replace all tensors of a network on the meta device by fake ones, which know their device."""
    import torch

    made: dict[int, Any] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            module._parameters[name] = made.get(id(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _kept(network: Any, samples: int, length: int, computes: Computes) -> list[int]:
    """Return the bytes of the storages that each layer's forward pass keeps, a shared one at the first layer."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from workflows.planning.memory.model import decoder_layers

    layers = decoder_layers(network)
    kept, running, seen = [0] * len(layers), [-1], dict[int, Any]()

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if running[0] >= 0 and storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that its address is not used again
            kept[running[0]] += storage.nbytes()
        return tensor

    seen |= {s._cdata: s for p in network.parameters() for s in [p.untyped_storage()]}
    hooks = [layer.register_forward_pre_hook(_set(running, i)) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(_set(running, -1)) for layer in layers]
    tokens = torch.zeros((samples, length), dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=computes == "autocast")
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            network(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _set(running: list[int], layer: int) -> Any:
    """Return a hook that notes which layer runs."""

    def note(*_: Any) -> None:
        running[0] = layer

    return note

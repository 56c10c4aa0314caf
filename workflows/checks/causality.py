"""Test on a small copy of a network with random weights whether a position can see the tokens after it."""

from __future__ import annotations

import copy
from typing import Any

LENGTH, LAYERS, VOCABULARY, HEAD_WIDTH, INNER = 6, 2, 64, 16, 32
LARGEST = 60_000_000  # parameters of a copy that is built to be run
TOLERANCE = 1e-4
INNER_NAMES = ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")
# what libraries raise for a configuration whose parts do not fit together
UNFIT = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, AssertionError, ZeroDivisionError)


def is_causal(config: Any) -> bool | None:
    """Return whether the logits of a position are those of a causal language model: later tokens do not change them.

    Args:
        config: of the model, as transformers reads it.

    Returns:
        None if no small copy of such a model can be run here.
    """
    for narrow in (True, False):
        try:
            return _earlier_logits_stay(_shrunk(config.get_text_config(decoder=True), narrow))
        except UNFIT:
            continue
    return None


def _shrunk(config: Any, narrow: bool) -> Any:
    """Return a configuration of the same kind with few layers, if wanted narrow ones."""
    small, stored, layers = copy.deepcopy(config), config.to_dict(), getattr(config, "num_hidden_layers", 0)
    for name, value in stored.items():
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, value[:LAYERS])
        elif name.endswith("_token_id") and value is not None:
            setattr(small, name, 1)
    small.num_hidden_layers, small.vocab_size = min(LAYERS, layers), VOCABULARY
    heads = getattr(config, "num_attention_heads", None)
    if narrow and isinstance(heads, int):
        small.hidden_size = heads * HEAD_WIDTH
        for name in INNER_NAMES:
            if stored.get(name):
                setattr(small, name, INNER)
        for name, width in (("head_dim", HEAD_WIDTH), ("word_embed_proj_dim", small.hidden_size)):
            if stored.get(name):
                setattr(small, name, width)
    return small


def _earlier_logits_stay(config: Any) -> bool:
    import torch

    from apps.models.loading import random_network

    with torch.device("meta"):
        size = random_network(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{size} parameters are too many for a test")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = random_network(config, dtype=torch.float32).eval()
        tokens = torch.arange(2, 2 + LENGTH)[None]
        other = tokens.clone()
        other[0, -1] += 20
        one, two = (network(input_ids=ids, use_cache=False).logits[0] for ids in (tokens, other))
    change = (one - two).abs().max(dim=-1).values
    return bool(change[:-1].max() <= TOLERANCE * change[-1])

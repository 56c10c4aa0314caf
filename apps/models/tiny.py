"""The tiny Llama-style model that is built from scratch, for tests and demonstrations: its shape from two numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig

MAX_TOKENS = 512


def tiny_heads(width: int) -> int:
    """Return the number of attention heads of a tiny model of a width."""
    return max(2, width // 64)


def tiny_config(size: Mapping[str, int], vocabulary: int, **special_tokens: int | None) -> LlamaConfig:
    """Return the configuration of a tiny model.

    Args:
        size: ``width`` and ``layers``.
        vocabulary: number of tokens.
        special_tokens: ids as ``LlamaConfig`` takes them.
    """
    from transformers import LlamaConfig

    width, heads = size["width"], tiny_heads(size["width"])
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=size["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=max(32, round(width * 8 / 3 / 32) * 32),
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        **special_tokens,  # type: ignore[arg-type]
    )

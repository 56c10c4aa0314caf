"""Cross entropy of the counted tokens, without computing the output layer for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from apps.models.batches import Batch

if TYPE_CHECKING:
    import torch


def counted_logits(network: Any, batch: Batch, forward: Callable[..., Any] | None = None) -> torch.Tensor:
    """Compute the logits (counted tokens, vocabulary).

    Only the counted positions go through the output layer, which is most of the work for a small model with a large
    vocabulary. A hook in front of that layer selects them, so this works with any causal language model.

    Args:
        network: the causal language model.
        batch: on its device.
        forward: called instead of the network, if the network is wrapped.
    """
    head = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][:, :-1][batch.counted], *args[1:]))
    try:
        return (forward or network)(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False).logits
    finally:
        handle.remove()


def mean_loss(network: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross entropy (nats) over the counted tokens of a batch."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(counted_logits(network, batch).float(), batch.targets)


def summed_loss(forward: Callable[..., Any], network: Any, batch: Batch) -> torch.Tensor:
    """Return the sum of the cross entropy (nats) over the counted tokens of a batch.

    Args:
        forward: the network, or what it is wrapped in.
        network: the causal language model.
        batch: on its device.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(counted_logits(network, batch, forward).float(), batch.targets, reduction="sum")


def loss_per_sample(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the cross entropy (nats) and the number of counted tokens of each sample of a batch."""
    import torch
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.float(), batch.targets, reduction="none")
    rows = batch.counted.nonzero()[:, 0]
    total = torch.zeros(len(batch.tasks), dtype=torch.float64)
    total.index_add_(0, rows.cpu(), losses.double().cpu())
    return total, batch.counted.sum(1).cpu()

"""AdamW at the sites: learning rate over a campaign, moments by tensor name, the proximal term of FedProx."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.training.checkpoints import set_moments
from apps.training.spec import TrainingSpec

if TYPE_CHECKING:
    import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8


def rate_factor(step: int, schedule: str, warmup: int, total: int, final: float = 0.0) -> float:
    """Return the factor on the learning rate at a step of the campaign.

    Linear warm-up to 1, then constant, or a linear or cosine decay to ``final`` at step ``total``.

    Args:
        step: number of the step, from 0.
        schedule: constant, linear or cosine.
        warmup: steps of the warm-up.
        total: steps of the campaign.
        final: factor at the end of a decay.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return final + (1 - final) * left


def make_optimizer(
    trained: Mapping[str, torch.Tensor], spec: TrainingSpec, moments: Mapping[str, Any] | None
) -> torch.optim.Optimizer:
    """Return AdamW over the trained tensors, with the moments of the site's last round if they are given.

    A tensor that never had a gradient has no moments. Weight decay acts on matrices, embeddings and adapters; norms and
    biases, which have one dimension, are left out, as in the Trainer of transformers.

    Args:
        trained: tensors by artifact name.
        spec: with learning rate and weight decay.
        moments: as ``optimizer_tensors`` returns them.
    """
    import torch

    decay = {True: spec["weight_decay"], False: 0.0}  # whether a tensor is a matrix -> its weight decay
    groups = [
        {"params": [p for p in trained.values() if (p.ndim >= 2) == matrices], "weight_decay": decay[matrices]}
        for matrices in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec["learning_rate"], betas=BETAS, eps=EPSILON)
    carried = moments or {}
    for name, parameter in trained.items():
        if f"{name}/step" in carried:
            found = {key: carried[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            set_moments(optimizer, parameter, found)
    return optimizer


def optimizer_tensors(trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the moments by tensor name, as ``make_optimizer`` takes them."""
    return {
        f"{name}/{key}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state[parameter].items()
    }


def update_parameters(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    start: Sequence[torch.Tensor],
    spec: TrainingSpec,
    rate: float,
) -> None:
    """Do one step of AdamW with the present gradients: add the proximal term, clip, step.

    Args:
        optimizer: AdamW over the parameters.
        parameters: with their gradients.
        start: the parameters at the start of the round; empty without a proximal term.
        spec: with the proximal term and the bound of the gradient's norm.
        rate: the learning rate.
    """
    import torch

    if start:
        _add_proximal(parameters, start, spec["proximal_mu"])
    if spec["clip_norm"] is not None:
        torch.nn.utils.clip_grad_norm_(parameters, spec["clip_norm"])
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _add_proximal(parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor], mu: float) -> None:
    """Add the gradient of FedProx's mu/2 ||x - x_global||^2 (Li et al., arXiv 1812.06127)."""
    for parameter, origin in zip(parameters, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

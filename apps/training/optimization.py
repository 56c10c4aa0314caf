"""AdamW as the sites use it: its learning rate over a campaign, its moments by tensor name, FedProx's pull."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.training.checkpoints import set_moments

if TYPE_CHECKING:
    import torch

    from apps.training.spec import TrainingSpec

BETAS, EPSILON = (0.9, 0.999), 1e-8


def rate_factor(step: int, schedule: str, warmup: int, total: int, final: float = 0.0) -> float:
    """Factor on the learning rate at a step of the campaign: linear warm-up to 1, then constant, or a linear or
    cosine decay to ``final`` at step ``total``."""
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
    """AdamW over the trained tensors, with the moments of the site's last round where they are given.

    A tensor that never had a gradient has no moments, before as after.
    """
    import torch

    optimizer = torch.optim.AdamW(
        list(trained.values()), lr=spec["learning_rate"], betas=BETAS, eps=EPSILON, weight_decay=spec["weight_decay"]
    )
    carried = moments or {}
    for name, parameter in trained.items():
        if f"{name}/step" in carried:
            found = {key: carried[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            set_moments(optimizer, parameter, found)
    return optimizer


def optimizer_tensors(trained: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments by tensor name, as ``make_optimizer`` takes them."""
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
    """One step of AdamW with the gradients that are there: the proximal term, then the clip, then the step.

    Args:
        start: the parameters as the round began; empty without a proximal term.
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
    """The gradient of FedProx's mu/2 ||x - x_global||^2 (Li et al., arXiv 1812.06127)."""
    for parameter, origin in zip(parameters, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)

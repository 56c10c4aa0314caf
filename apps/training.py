"""Local training: some steps of AdamW on a site's samples, from a given state, the same for the same seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict

from apps.batches import Batch, Sample, collate, padding_share, plan_batches
from apps.errors import TrainingError
from apps.loss import mean_loss
from apps.models import Model

if TYPE_CHECKING:
    import torch

Report = Callable[[int, float, float], None]  # steps done, loss, tokens per second
BETAS, EPSILON = (0.9, 0.999), 1e-8


class TrainingSpec(TypedDict):
    """How a site trains in one round, in plain values."""

    steps: int
    batch_size: int
    accumulate: int  # batches per step
    learning_rate: float
    schedule: str  # constant, linear or cosine
    final_factor: float  # of the learning rate at the end of a decay
    warmup_steps: int  # of the campaign, not of the round
    start_step: int  # steps of the campaign before this round
    total_steps: int  # steps of the whole campaign
    weight_decay: float
    clip_norm: float | None
    proximal_mu: float
    precision: str  # "no" or "bf16": mixed precision by accelerate
    device: str
    keep_optimizer: bool


@dataclass
class Outcome:
    """What came of some steps; losses in nats, ``padding`` as a share of positions."""

    steps: int
    samples: int
    tokens: int
    losses: list[float]
    seconds: float
    padding: float
    optimizer: torch.optim.Optimizer


@lru_cache(maxsize=1)
def accelerator_for(device: str, precision: str) -> Any:
    """accelerate's view of this worker's device: CPU, CUDA (also ROCm) or XPU, with its mixed precision."""
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


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


def train(
    model: Model, samples: Sequence[Sample], spec: TrainingSpec, seed: int, optimizer_state: dict | None, report: Report
) -> Outcome:
    """Train the model in place.

    Args:
        model: with the state to start from; its trained tensors change.
        samples: the site's tokenised shard.
        seed: of the order of samples and of dropout.
        optimizer_state: moments by tensor name from the site's last round, or None to start fresh.
        report: told after every step.

    Raises:
        TrainingError: the loss is not finite, or there are no samples.
    """
    import torch

    if not samples:
        raise TrainingError("there are no samples to train on")
    torch.manual_seed(seed)
    accelerator = accelerator_for(spec["device"], spec["precision"])
    optimizer = make_optimizer(model, spec, optimizer_state)
    optimizer.zero_grad(set_to_none=True)  # a warm model may hold gradients of a step that broke off
    lengths = [len(s.tokens) for s in samples]
    plan = plan_batches(lengths, spec["batch_size"], spec["steps"] * spec["accumulate"], seed)
    start = [p.detach().clone() for p in model.trained.values()] if spec["proximal_mu"] else []
    model.network.train()
    began, losses, tokens = time.monotonic(), [], 0
    for step in range(spec["steps"]):
        group = plan[step * spec["accumulate"] : (step + 1) * spec["accumulate"]]
        batches = [collate([samples[i] for i in rows], model.tokenizer.pad_token_id) for rows in group]
        at = spec["start_step"] + step
        factor = rate_factor(at, spec["schedule"], spec["warmup_steps"], spec["total_steps"], spec["final_factor"])
        losses.append(_step(model, batches, optimizer, spec, spec["learning_rate"] * factor, start, accelerator))
        tokens += sum(int(b.attention.sum()) for b in batches)
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"loss is {losses[-1]} at step {step + 1}", remedy="Lower training.learning_rate")
        report(step + 1, losses[-1], tokens / max(1e-9, time.monotonic() - began))
    used = sum(len(rows) for rows in plan)
    return Outcome(
        spec["steps"], used, tokens, losses, time.monotonic() - began, padding_share(plan, lengths), optimizer
    )


def _step(
    model: Model,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    spec: TrainingSpec,
    rate: float,
    start: Sequence[torch.Tensor],
    accelerator: Any,
) -> float:
    """One optimiser step over the batches that are accumulated; the mean of their losses."""
    import torch

    total = 0.0
    for batch in batches:
        with accelerator.autocast():
            loss = mean_loss(model.network, batch.to(accelerator.device)) / len(batches)
        accelerator.backward(loss)
        total += float(loss.detach())
    parameters = list(model.trained.values())
    if start:
        _add_proximal(parameters, start, spec["proximal_mu"])
    if spec["clip_norm"] is not None:
        torch.nn.utils.clip_grad_norm_(parameters, spec["clip_norm"])
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _add_proximal(parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor], mu: float) -> None:
    """The gradient of FedProx's mu/2 ||x - x_global||^2 (Li et al., arXiv 1812.06127)."""
    for parameter, origin in zip(parameters, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - origin, alpha=mu)


def make_optimizer(model: Model, spec: TrainingSpec, state: dict | None) -> torch.optim.Optimizer:
    """AdamW over the trained tensors, with the moments of the site's last round where they are given.

    A tensor that never had a gradient has no moments, before as after.
    """
    import torch

    optimizer = torch.optim.AdamW(
        list(model.trained.values()),
        lr=spec["learning_rate"],
        betas=BETAS,
        eps=EPSILON,
        weight_decay=spec["weight_decay"],
    )
    if state is not None:
        for name, parameter in model.trained.items():
            if f"{name}/step" in state:
                optimizer.state[parameter] = {
                    "step": state[f"{name}/step"],  # stays on the CPU, where AdamW keeps it
                    **{key: state[f"{name}/{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")},
                }
    return optimizer


def optimizer_tensors(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments by tensor name, as ``make_optimizer`` takes them."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.trained.items()
        for key, value in optimizer.state[parameter].items()
    }

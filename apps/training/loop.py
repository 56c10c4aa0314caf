"""Local training: steps of AdamW on a site's samples; equal for equal seeds, and for any number of attempts.

The samples of a step belong to the site: they are distributed over the ranks, each rank computes its share in micro
batches, and loss and gradient are divided by the counted tokens of the whole step, over all its accumulated batches. So
the number of ranks, micro batches and accumulated batches changes rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import LossNotFinite, TrainingError
from apps.models.batches import Sample, Samples, collate, iter_batches, padded_positions
from apps.models.loss import summed_loss
from apps.models.model import Model
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import Checkpoints, TrainingState, restore
from apps.training.deadline import Deadline
from apps.training.optimization import make_optimizer, optimizer_tensors, rate_factor, update_parameters
from apps.training.spec import TrainingSpec

if TYPE_CHECKING:
    import torch

Report = Callable[[int, float, float], None]  # steps done, loss, tokens per second


@dataclass
class TrainingResult:
    """Result of a training over all its attempts.

    Attributes:
        state: steps, tokens, seconds, and losses in nats.
        steps_here: steps of this attempt.
        cut: True if the request's time was over before all steps were done.
        samples: used in these steps.
        padding: fraction of positions that were padding.
        optimizer: with its moments.
    """

    state: TrainingState
    steps_here: int
    cut: bool
    samples: int
    padding: float
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class AttemptContext:
    """Environment of one attempt at a training.

    Attributes:
        group: the ranks.
        deadline: decides when to save and when to stop.
        checkpoints: to save to.
        report: called after every step.
        forward: calls the network through whatever wraps it.
        micro_batch: samples in one forward pass of a rank.
        no_sync: a context in which the ranks do not exchange gradients.
        autocast: True if mixed precision needs torch's autocast.
    """

    group: ProcessGroup
    deadline: Deadline
    checkpoints: Checkpoints
    report: Report
    forward: Callable[..., Any]
    micro_batch: int
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    autocast: bool = False


def train(
    model: Model,
    samples: Samples,
    spec: TrainingSpec,
    seed: int,
    moments: dict | None,
    attempt: AttemptContext,
) -> TrainingResult:
    """Train the model in place, from the newest checkpoint if there is one, until all steps are done or it must stop.

    Args:
        model: with the state to start from; its trained tensors change.
        samples: of the site; only those that are drawn are taken.
        spec: settings of the training.
        seed: of the order of samples and of dropout.
        moments: by tensor name from the site's last round, or None to start without.
        attempt: the environment of this attempt.

    Raises:
        LossNotFinite: the training has diverged.
        TrainingError: there are no samples.
        StorageError: a checkpoint cannot be written.
    """
    import torch

    if not len(samples):
        raise TrainingError("there are no samples to train on")
    group, deadline = attempt.group, attempt.deadline
    torch.manual_seed(seed + group.rank)
    optimizer = make_optimizer(model.trained, spec, moments)
    optimizer.zero_grad(set_to_none=True)  # the model may hold gradients of an interrupted step
    start = [p.detach().clone() for p in model.trained.values()] if spec["proximal_mu"] else []
    state = _resumed(model, optimizer, attempt)
    size, accumulate = spec["batch_size"], spec["accumulate"]
    drawn = iter_batches(samples, size, spec["steps"] * accumulate, seed, skip=state.steps * accumulate)
    model.network.train()
    first = saved = state.steps
    stop, cut = group.total(deadline.must_stop(), state.steps > 0 and deadline.is_over())
    while state.steps < spec["steps"] and not stop and not cut:
        began = time.monotonic()
        batches = list(islice(drawn, accumulate))
        part = _gradients(model, batches, attempt)
        update_parameters(optimizer, list(model.trained.values()), start, spec, _rate(spec, state.steps))
        deadline.stepped(time.monotonic() - began)
        save = deadline.save_is_due(spec["steps"] - state.steps - 1)
        loss, due, stop, cut = group.total(part, save, deadline.must_stop(), deadline.is_over())
        _count(state, loss, batches, time.monotonic() - began)
        attempt.report(state.steps, loss, state.tokens / max(1e-9, state.seconds))
        if (due or stop) and state.steps < spec["steps"] and not cut:
            _save(model, optimizer, state, attempt)
            saved = state.steps
    assert cut or state.steps in (saved, spec["steps"])
    padding = 1 - state.tokens / state.positions if state.positions else 0.0
    return TrainingResult(state, state.steps - first, bool(cut), state.steps * accumulate * size, padding, optimizer)


def _rate(spec: TrainingSpec, step: int) -> float:
    at = spec["start_step"] + step
    factor = rate_factor(at, spec["schedule"], spec["warmup_steps"], spec["total_steps"], spec["final_factor"])
    return spec["learning_rate"] * factor


def _count(state: TrainingState, loss: float, batches: Sequence[Sequence[Sample]], seconds: float) -> None:
    """Add a step to the training state.

    Raises:
        LossNotFinite: the training has diverged.
    """
    if not math.isfinite(loss):
        raise LossNotFinite(f"loss is {loss} at step {state.steps + 1}", remedy="Lower training.learning_rate")
    state.steps += 1
    state.losses.append(loss)
    state.tokens += sum(len(s.tokens) for batch in batches for s in batch)
    state.positions += sum(map(padded_positions, batches))
    state.seconds += seconds


def _resumed(model: Model, optimizer: torch.optim.Optimizer, attempt: AttemptContext) -> TrainingState:
    """Load the newest checkpoint and return its training state; without one, the state of a start."""
    group = attempt.group
    newest = attempt.checkpoints.newest() if group.writes else None
    path = group.broadcast(str(newest) if newest else None)
    return restore(Path(path), group, model.trained, optimizer) if path else TrainingState()


def _save(model: Model, optimizer: torch.optim.Optimizer, state: TrainingState, attempt: AttemptContext) -> None:
    began = time.monotonic()
    tensors = {**model.trained, **optimizer_tensors(model.trained, optimizer)}
    attempt.checkpoints.save(attempt.group, state, tensors)
    attempt.deadline.saved(time.monotonic() - began)
    if attempt.group.writes:
        attempt.checkpoints.record_times(attempt.deadline.step_s, attempt.deadline.save_s)
    attempt.group.barrier()  # some launchers end the others when the first rank ends, while one may still be writing


def counted_tokens(samples: Sequence[Sample]) -> int:
    """Return the number of tokens that count for the loss."""
    return sum(max(0, len(s.tokens) - max(s.answer_from, 1)) for s in samples)


def micro_batches(
    batch: Sequence[Sample], rank: int, size: int, micro_batch: int
) -> Iterator[tuple[Sequence[Sample], float]]:
    """Yield a rank's share of a batch in pieces, each with the factor of its loss.

    All ranks get the same number of pieces, because they exchange data in each; a rank with too few samples computes a
    sample of the batch once more, with the factor 0.

    Args:
        batch: samples of the site.
        rank: number of the rank.
        size: number of ranks.
        micro_batch: samples in a piece.
    """
    own = batch[rank::size]
    largest = -(-len(batch) // size)
    for at in range(0, largest, micro_batch):
        piece = own[at : at + micro_batch]
        yield (piece, 1.0) if piece else (batch[:1], 0.0)


def _gradients(model: Model, batches: Sequence[Sequence[Sample]], attempt: AttemptContext) -> float:
    """Compute the gradients of one step over its batches; return this rank's part of the mean over counted tokens."""
    import torch

    group, total = attempt.group, 0.0
    counted = max(1, sum(map(counted_tokens, batches)))  # of the whole step: batches of few counted tokens weigh less
    pieces = [
        (piece, factor / counted)
        for batch in batches
        for piece, factor in micro_batches(batch, group.rank, group.size, attempt.micro_batch)
    ]
    kind = torch.device(group.device).type
    for number, (piece, factor) in enumerate(pieces, start=1):
        batch = collate(piece, model.tokenizer.pad_token_id).to(group.device)
        with attempt.no_sync() if number < len(pieces) else nullcontext():
            with torch.autocast(kind, torch.bfloat16) if attempt.autocast else nullcontext():
                loss = summed_loss(attempt.forward, model.network, batch) * factor
            (loss * group.size).backward()  # the ranks' gradients are averaged
        total += float(loss.detach())
    return total

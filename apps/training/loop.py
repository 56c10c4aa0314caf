"""Local training: some steps of AdamW on a site's samples, the same for the same seed and in however many attempts.

A batch belongs to the site: its samples are dealt out to the ranks, each computes its share in micro batches, and
loss and gradient are divided by the counted tokens of the whole batch. So the number of ranks changes rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.base.errors import TrainingError
from apps.models.batches import Sample, collate, padding_share, plan_batches
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
    """What came of some steps over all attempts; losses in nats, ``padding`` as a share of positions.

    ``steps_here`` are those of this attempt; ``cut`` says that the order's time was over before all were done.
    """

    standing: TrainingState
    steps_here: int
    cut: bool
    samples: int
    padding: float
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class AttemptContext:
    """What surrounds one attempt at a training.

    Attributes:
        team: the ranks.
        watch: tells when to save and when to stop.
        checkpoints: where to save.
        report: told after every step.
        forward: calls the network, by way of what wraps it.
        hold_back: a context in which gradients are not exchanged between the ranks yet.
        micro_batch: samples that a rank computes at once.
        autocast: whether mixed precision is torch's autocast.
    """

    team: ProcessGroup
    watch: Deadline
    checkpoints: Checkpoints
    report: Report
    forward: Callable[..., Any]
    micro_batch: int
    hold_back: Callable[[], AbstractContextManager[Any]] = nullcontext
    autocast: bool = False


def train(
    model: Model,
    samples: Sequence[Sample],
    spec: TrainingSpec,
    seed: int,
    moments: dict | None,
    attempt: AttemptContext,
) -> TrainingResult:
    """Train the model in place, from the newest checkpoint if there is one, as far as ordered or until it must stop.

    Args:
        model: with the state to start from; its trained tensors change.
        samples: the site's tokenised shard.
        seed: of the order of samples and of dropout.
        moments: by tensor name from the site's last round, or None to start fresh.
        attempt: what surrounds it.

    Raises:
        TrainingError: the loss is not finite, or there are no samples.
        StorageError: a checkpoint cannot be written.
    """
    import torch

    if not samples:
        raise TrainingError("there are no samples to train on")
    team, watch = attempt.team, attempt.watch
    torch.manual_seed(seed + team.rank)
    optimizer = make_optimizer(model.trained, spec, moments)
    optimizer.zero_grad(set_to_none=True)  # a warm model may hold gradients of a step that broke off
    start = [p.detach().clone() for p in model.trained.values()] if spec["proximal_mu"] else []
    standing = _resumed(model, optimizer, attempt)
    lengths = [len(s.tokens) for s in samples]
    plan = plan_batches(lengths, spec["batch_size"], spec["steps"] * spec["accumulate"], seed)
    model.network.train()
    first = saved = standing.steps
    stop, cut = team.total(watch.must_stop(), standing.steps > 0 and watch.is_over())
    while standing.steps < spec["steps"] and not stop and not cut:
        began = time.monotonic()
        rows = plan[standing.steps * spec["accumulate"] : (standing.steps + 1) * spec["accumulate"]]
        groups = [[samples[i] for i in group] for group in rows]
        part = _gradients(model, groups, spec, attempt)
        update_parameters(optimizer, list(model.trained.values()), start, spec, _rate(spec, standing.steps))
        watch.stepped(time.monotonic() - began)
        loss, due, stop, cut = team.total(part, watch.save_is_due(), watch.must_stop(), watch.is_over())
        _count(standing, loss, groups, time.monotonic() - began)
        attempt.report(standing.steps, loss, standing.tokens / max(1e-9, standing.seconds))
        if (due or stop) and standing.steps < spec["steps"] and not cut:
            _save(model, optimizer, standing, attempt)
            saved = standing.steps
    done = plan[: standing.steps * spec["accumulate"]]
    assert cut or standing.steps in (saved, spec["steps"])
    return TrainingResult(
        standing, standing.steps - first, bool(cut), sum(map(len, done)), padding_share(done, lengths), optimizer
    )


def _rate(spec: TrainingSpec, step: int) -> float:
    at = spec["start_step"] + step
    factor = rate_factor(at, spec["schedule"], spec["warmup_steps"], spec["total_steps"], spec["final_factor"])
    return spec["learning_rate"] * factor


def _count(standing: TrainingState, loss: float, groups: Sequence[Sequence[Sample]], seconds: float) -> None:
    """Add a step to the standing.

    Raises:
        TrainingError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise TrainingError(f"loss is {loss} at step {standing.steps + 1}", remedy="Lower training.learning_rate")
    standing.steps += 1
    standing.losses.append(loss)
    standing.tokens += sum(len(s.tokens) for group in groups for s in group)
    standing.seconds += seconds


def _resumed(model: Model, optimizer: torch.optim.Optimizer, attempt: AttemptContext) -> TrainingState:
    """The standing of the newest checkpoint, whose state is put into the model, or that of a beginning."""
    team = attempt.team
    path = team.told(attempt.checkpoints.newest() if team.writes else None)
    return restore(path, team, model.trained, optimizer) if path else TrainingState()


def _save(model: Model, optimizer: torch.optim.Optimizer, standing: TrainingState, attempt: AttemptContext) -> None:
    began = time.monotonic()
    tensors = {**model.trained, **optimizer_tensors(model.trained, optimizer)}
    attempt.checkpoints.save(attempt.team, standing, tensors)
    attempt.watch.saved(time.monotonic() - began)
    if attempt.team.writes:
        attempt.checkpoints.note(attempt.watch.step_s, attempt.watch.save_s)
    attempt.team.wait()  # the first rank to end in order would end the one that still writes


def counted_tokens(samples: Sequence[Sample]) -> int:
    """Tokens of these samples that count for the loss."""
    return sum(max(0, len(s.tokens) - max(s.answer_from, 1)) for s in samples)


def micro_batches(
    group: Sequence[Sample], rank: int, size: int, micro_batch: int
) -> Iterator[tuple[Sequence[Sample], float]]:
    """A rank's share of a batch in pieces, each with the factor of its loss.

    All ranks get equally many pieces, as they exchange data in each; one that has too few computes a sample of the
    batch once more, with the factor 0.
    """
    own = group[rank::size]
    largest = -(-len(group) // size)
    for at in range(0, largest, micro_batch):
        piece = own[at : at + micro_batch]
        yield (piece, 1.0) if piece else (group[:1], 0.0)


def _gradients(model: Model, groups: Sequence[Sequence[Sample]], spec: TrainingSpec, attempt: AttemptContext) -> float:
    """Gradients of one step over the batches that are accumulated; this rank's part of the mean of their losses."""
    import torch

    team, total = attempt.team, 0.0
    pieces = [
        (piece, factor / (max(1, counted_tokens(group)) * len(groups)))
        for group in groups
        for piece, factor in micro_batches(group, team.rank, team.size, attempt.micro_batch)
    ]
    kind = torch.device(team.device).type
    for number, (piece, factor) in enumerate(pieces, start=1):
        batch = collate(piece, model.tokenizer.pad_token_id).to(team.device)
        with attempt.hold_back() if number < len(pieces) else nullcontext():
            with torch.autocast(kind, torch.bfloat16) if attempt.autocast else nullcontext():
                loss = summed_loss(attempt.forward, model.network, batch) * factor
            (loss * team.size).backward()  # the ranks' gradients are averaged
        total += float(loss.detach())
    return total

"""Losses by task of a model on the pooled test set, in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from apps.base.errors import UserMistake
from apps.base.identity import identity
from apps.models.batches import Batch, DataSpec, by_length, collate
from apps.models.encoding import encode
from apps.models.loss import counted_logits, loss_per_sample
from apps.models.model import Model, ModelSpec
from apps.ranks.parallel import Parallel
from data.records import load_records

SampleLosses = dict[str, list[tuple[float, int]]]  # task -> sum of the cross entropy and counted tokens of each sample
# Kinds of models whose forward pass is embedding, layers that all take the same arguments, norm and output layer,
# and nothing else after the layers; others scale or cap their logits.
PLAIN_KINDS = ("llama", "mistral", "qwen2", "qwen3")


class EvaluationWork(TypedDict):
    """Settings of the evaluation in plain values; the same over a campaign."""

    store: str
    model: ModelSpec
    data: DataSpec
    split: str
    code_version: str


class EvaluationSettings(TypedDict):
    """Settings of an evaluation at its place; no part of a task's identity, so they may change in a campaign."""

    batch_size: int
    threads: int
    device: str
    precision: str  # of ranks: "no" or "bf16"
    parallel: Parallel | None  # layout of the ranks; None: in the worker itself
    root: str  # folder for the logs of ranks
    source: str  # the base model at this place; empty: as everywhere


class TaskLoss(TypedDict):
    """Mean cross entropy (nats) of the counted tokens of one task, with its standard error over the samples."""

    loss: float
    samples: int
    tokens: int
    standard_error: float | None  # None for a single sample


def task_losses(model: Model, tests: TestSet) -> dict[str, TaskLoss]:
    """Return the losses by task, sorted by the names of the tasks.

    Args:
        model: to be evaluated.
        tests: the test set of this model.
    """
    import torch

    found: SampleLosses = {}
    model.network.eval()
    with torch.inference_mode():
        for batch, logits in _logits(model, tests):
            sums, counts = loss_per_sample(logits, batch)
            add_samples(found, batch, sums.tolist(), counts.tolist())
    return by_task(found)


def add_samples(found: SampleLosses, batch: Batch, sums: Sequence[float], counts: Sequence[float]) -> None:
    """Add the sums of the cross entropy and the counted tokens of a batch's samples to those of their tasks."""
    for task, total, count in zip(batch.tasks, sums, counts, strict=True):
        found.setdefault(task, []).append((total, int(count)))


def by_task(found: SampleLosses) -> dict[str, TaskLoss]:
    """Return the losses by task, sorted by the names of the tasks."""
    return {task: task_loss(samples) for task, samples in sorted(found.items())}


def uniform_loss(model: Model) -> float:
    """Return the loss of a model that gives every token the same probability."""
    network: Any = model.network
    return math.log(network.get_output_embeddings().weight.shape[0])


def task_loss(samples: Sequence[tuple[float, int]]) -> TaskLoss:
    """Return the mean loss of a task and its standard error.

    The mean over the tokens is a ratio of two sums over the samples; its standard error is the linearised one for
    samples drawn independently (Cochran, Sampling Techniques, 3rd ed. 1977, section 2.11).

    Args:
        samples: sum of the cross entropy (nats) and number of counted tokens of each.
    """
    count, tokens = len(samples), sum(n for _, n in samples)
    loss = sum(total for total, _ in samples) / tokens
    error = None
    if count > 1:
        residuals = [total - loss * n for total, n in samples]
        error = math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / tokens
    return TaskLoss(loss=loss, samples=count, tokens=tokens, standard_error=error)


@dataclass(frozen=True)
class FirstLayerInput:
    """Input of the first layer that may be trained."""

    hidden: Any  # (batch, length, width)
    arguments: dict[str, Any]


@dataclass
class TestSet:
    """The test set in batches, with the output of the frozen layers for the first of them."""

    batches: list[Batch]
    first_inputs: list[FirstLayerInput]  # of the first layer that may be trained, as far as computed


def test_set(model: Model, work: EvaluationWork, batch_size: int, device: Any = None) -> TestSet:
    """Return the test set in batches of similar length on the model's device; a worker keeps it beside its model.

    Args:
        model: with its tokenizer.
        work: settings of the evaluation.
        batch_size: samples of a batch.
        device: for the batches; None: that of the model.

    Raises:
        UserMistake: there are no such records.
    """
    key = identity({"data": work["data"], "split": work["split"], "batch_size": batch_size})
    if model.warm.get("test_set_key") != key:
        data = work["data"]
        try:
            records = load_records(data["source"], work["split"], data["tasks"], data["per_task"])
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            raise UserMistake(str(error)) from None
        groups = by_length(encode(records, model.tokenizer, data), batch_size)
        pad, device = model.tokenizer.pad_token_id, device or model.network.device
        batches = [collate(group, pad).to(device) for group in groups]
        model.warm = {"test_set_key": key, "test_set": TestSet(batches, [])}
    return model.warm["test_set"]


def _logits(model: Model, tests: TestSet) -> Iterator[tuple[Batch, Any]]:
    """Yield the logits of the counted tokens of each batch; the frozen layers are computed once per worker."""
    first = frozen_layers(model)
    for number, batch in enumerate(tests.batches):
        if not first:
            yield batch, counted_logits(model.network, batch)
            continue
        if number == len(tests.first_inputs):
            tests.first_inputs.append(_run_frozen_layers(model, batch, first))
        yield batch, _run_trained_layers(model, batch, first, tests.first_inputs[number])


def frozen_layers(model: Model) -> int:
    """Return how many of the first decoder layers are never trained; 0 if this is unknown for the kind of model."""
    adapter, config = model.spec["adapter"], model.network.config
    uniform = len(set(getattr(config, "layer_types", None) or ["full_attention"])) == 1
    if not adapter or not adapter["last_layers"] or config.model_type not in PLAIN_KINDS or not uniform:
        return 0
    return max(0, len(_body(model).layers) - adapter["last_layers"])


def _body(model: Model) -> Any:
    network: Any = model.network
    return (network.get_base_model() if model.spec["adapter"] else network).base_model


class _FrozenLayersDone(Exception):  # noqa: N818 (it is not an error)
    """Ends a forward pass after the frozen layers."""


def _run_frozen_layers(model: Model, batch: Batch, first: int) -> FirstLayerInput:
    caught: list[FirstLayerInput] = []

    def stop(_: Any, args: tuple, kwargs: dict) -> None:
        arguments = dict(kwargs)
        hidden = args[0] if args else arguments.pop("hidden_states")
        caught.append(FirstLayerInput(hidden, arguments))
        raise _FrozenLayersDone

    handle = _body(model).layers[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        _body(model)(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False)
    except _FrozenLayersDone:
        pass
    finally:
        handle.remove()
    return caught[0]


def _run_trained_layers(model: Model, batch: Batch, first: int, first_input: FirstLayerInput) -> Any:
    body, hidden = _body(model), first_input.hidden
    for layer in body.layers[first:]:
        out = layer(hidden, **first_input.arguments)
        hidden = out[0] if isinstance(out, tuple) else out
    return model.network.get_output_embeddings()(body.norm(hidden)[:, :-1][batch.counted])

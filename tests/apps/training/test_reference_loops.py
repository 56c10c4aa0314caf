"""Local training against a bare torch loop and the transformers Trainer: same samples, same order, same settings."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from training_site import TRAINING

from apps.base.stop import StopRequest
from apps.models import model as models
from apps.models.batches import Sample, SampleList, iter_batches
from apps.models.encoding import encode
from apps.models.model import Model
from apps.ranks.process_group import ProcessGroup
from apps.training.checkpoints import Checkpoints
from apps.training.deadline import Deadline
from apps.training.loop import AttemptContext, train
from data.records import load_records

SPEC = {"source": "tiny", "dtype": "float32", "seed": 1, "adapter": None, "tiny": {"width": 64, "layers": 2}}
DATA = {"max_tokens": 128, "prompt": "Q: {input}\nA:", "loss_on": "answer"}
TASKS = ["molecule_captioning", "property_prediction-liquid"]  # long answers and answers of one word
STEPS, BATCH, ACCUMULATE, SEED = 6, 4, 4, 7
SETTINGS = {**TRAINING, "steps": STEPS, "batch_size": BATCH, "accumulate": ACCUMULATE, "learning_rate": 3e-3}


class NoCheckpoints(Checkpoints):
    def __init__(self) -> None: ...

    def newest(self) -> None:
        return None

    def save(self, *_: Any) -> None: ...

    def record_times(self, *_: Any) -> None: ...


def new_model() -> Model:
    return models._load_model.__wrapped__(json.dumps(SPEC), "cpu")


@pytest.fixture(scope="module")
def samples() -> SampleList:
    return SampleList(encode(load_records("embedded", "train", TASKS, 40), new_model().tokenizer, DATA))


def steps_of(samples: SampleList) -> list[list[list[Sample]]]:
    drawn = iter_batches(samples, BATCH, STEPS * ACCUMULATE, SEED)
    return [list(islice(drawn, ACCUMULATE)) for _ in range(STEPS)]


def ours(samples: SampleList, micro_batch: int = 99, decay: float = 0.0) -> tuple[list[float], dict[str, torch.Tensor]]:
    model, losses = new_model(), []
    attempt = AttemptContext(
        ProcessGroup("cpu"),
        Deadline(1e9, None, StopRequest()),
        NoCheckpoints(),
        lambda _step, loss, _speed: losses.append(loss),
        model.network,
        micro_batch,
    )
    train(model, samples, SETTINGS | {"weight_decay": decay}, SEED, None, attempt)
    return losses, {name: tensor.detach() for name, tensor in model.trained.items()}


def padded(group: list[Sample], pad: int) -> dict[str, torch.Tensor]:
    length = max(len(sample.tokens) for sample in group)
    tokens = torch.full((len(group), length), pad)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for row, sample in enumerate(group):
        end = len(sample.tokens)
        tokens[row, :end], mask[row, :end] = torch.tensor(sample.tokens), 1
        labels[row, sample.answer_from : end] = tokens[row, sample.answer_from : end]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def bare_loop(samples: SampleList) -> tuple[list[float], dict[str, torch.Tensor]]:
    """One pass over the whole batch of each step."""
    model, losses = new_model(), []
    model.network.train()
    weights = list(model.trained.values())
    optimizer = torch.optim.AdamW(weights, lr=SETTINGS["learning_rate"], weight_decay=0.0)
    for groups in steps_of(samples):
        whole = padded([sample for group in groups for sample in group], model.tokenizer.pad_token_id)
        labels = whole.pop("labels")[:, 1:].reshape(-1)
        logits = model.network(**whole, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.reshape(-1, logits.shape[-1]), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: tensor.detach() for name, tensor in model.trained.items()}


def trainer(samples: SampleList, folder: Any, decay: float) -> tuple[list[float], dict[str, torch.Tensor]]:
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, losses = new_model(), []
    flat = [{"sample": sample} for groups in steps_of(samples) for group in groups for sample in group]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(flat)

    class Log(TrainerCallback):
        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_steps=STEPS,
        learning_rate=SETTINGS["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=decay,
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        optim="adamw_torch",
    )
    pad = model.tokenizer.pad_token_id
    InOrder(
        model=model.network,
        args=arguments,
        train_dataset=flat,
        data_collator=lambda rows: padded([row["sample"] for row in rows], pad),
        callbacks=[Log()],
    ).train()
    return losses, {name: tensor.detach() for name, tensor in model.trained.items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("micro_batch", [99, 3])
def test_accumulated_batches_equal_one_pass_over_the_whole_step(samples: SampleList, micro_batch: int) -> None:
    losses, weights = ours(samples, micro_batch)
    expected, reference = bare_loop(samples)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert largest_difference(weights, reference) < 2e-5


def test_a_batch_of_few_counted_tokens_weighs_less(samples: SampleList) -> None:
    """The mean of the batches' means, which was used once, is another number here."""
    model = new_model()
    first = steps_of(samples)[0]
    means, counts = [], []
    for group in first:
        batch = padded(group, model.tokenizer.pad_token_id)
        means.append(float(model.network(**batch).loss.detach()))
        counts.append(int((batch["labels"][:, 1:] != -100).sum()))
    weighted = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    losses, _ = ours(samples)
    assert losses[0] == pytest.approx(weighted, abs=1e-5)
    assert abs(sum(means) / len(means) - weighted) > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_accumulated_batches_equal_the_trainer_of_transformers(
    samples: SampleList, tmp_path: Any, decay: float
) -> None:
    """With a weight decay too, which leaves norms and biases out."""
    pytest.importorskip("accelerate")
    losses, weights = ours(samples, decay=decay)
    expected, reference = trainer(samples, tmp_path, decay)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert largest_difference(weights, reference) < 2e-5

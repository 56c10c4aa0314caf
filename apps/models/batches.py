"""Batches from records: prompt and answer as tokens, batches of similar length, the same for the same seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

WINDOW = 16  # batches that are sorted by length together: enough to avoid padding, few enough to stay mixed


class DataSpec(TypedDict):
    """Selection of records and their form, in plain values."""

    source: str
    tasks: list[str]
    per_task: int | None
    max_tokens: int
    prompt: str  # the question with {input} in it
    loss_on: str  # "answer" or "all"


@dataclass(frozen=True)
class Sample:
    """One record as tokens; ``answer_from`` is the index of the first token that counts for the loss."""

    tokens: tuple[int, ...]
    answer_from: int
    task: str


@dataclass(frozen=True)
class Batch:
    """Padded tokens (batch, length), the mask of real tokens, and the mask (batch, length - 1) of predicted ones."""

    tokens: torch.Tensor
    attention: torch.Tensor
    counted: torch.Tensor
    tasks: tuple[str, ...]

    @property
    def targets(self) -> torch.Tensor:
        """The tokens to be predicted, flat, in the order of the rows of ``counted``."""
        return self.tokens[:, 1:][self.counted]

    def to(self, device: Any) -> Batch:
        """Return the batch on another device."""
        return Batch(self.tokens.to(device), self.attention.to(device), self.counted.to(device), self.tasks)


def encode(records: Sequence[Any], tokenizer: Any, spec: DataSpec) -> list[Sample]:
    """Return the tokens of prompt, answer and end mark; a long sample loses the start of its prompt, never its answer.

    Args:
        records: with ``input``, ``output`` and ``task``.
        tokenizer: of the model.
        spec: with the prompt and the limit of tokens.
    """
    prompts = [spec["prompt"].format(input=r["input"]) for r in records]
    answers = [f" {r['output']}" for r in records]
    encoded = tokenizer(prompts + answers, add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if _wants_bos(tokenizer) else []
    samples = []
    for record, prompt, answer in zip(records, encoded[: len(records)], encoded[len(records) :], strict=True):
        answer = [*answer, tokenizer.eos_token_id][: spec["max_tokens"] - 1]
        prompt = [*start, *prompt][-(spec["max_tokens"] - len(answer)) :]
        counted_from = len(prompt) if spec["loss_on"] == "answer" else 1
        samples.append(Sample((*prompt, *answer), counted_from, record["task"]))
    return samples


def _wants_bos(tokenizer: Any) -> bool:
    """Return True for Llama-like tokenizers, which put a start mark before every text; GPT-like ones do not."""
    with_marks = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and with_marks[:1] == [tokenizer.bos_token_id]


def collate(samples: Sequence[Sample], pad: int) -> Batch:
    """Pad samples to one length with the token ``pad``."""
    import torch

    length = max(len(s.tokens) for s in samples)
    tokens = torch.full((len(samples), length), pad, dtype=torch.long)
    attention = torch.zeros((len(samples), length), dtype=torch.long)
    counted = torch.zeros((len(samples), length - 1), dtype=torch.bool)
    for row, sample in enumerate(samples):
        end = len(sample.tokens)
        tokens[row, :end] = torch.tensor(sample.tokens)
        attention[row, :end] = 1
        counted[row, max(sample.answer_from, 1) - 1 : end - 1] = True
    return Batch(tokens, attention, counted, tuple(s.task for s in samples))


def seed_of(*parts: object) -> int:
    """Return a seed that is the same in every process for the same parts, unlike ``hash``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def plan_batches(lengths: Sequence[int], size: int, count: int, seed: int) -> list[list[int]]:
    """Return ``count`` batches of ``size`` sample indices.

    Samples are drawn without replacement until all were drawn, then again. Within a window of batches they are grouped
    by length, and the batches are shuffled. A window ends where all samples were drawn: otherwise copies of one
    sample, equal in length, would be in the same batch.

    Args:
        lengths: tokens of each sample.
        size: samples in a batch.
        count: number of batches.
        seed: of the order.
    """
    rng = random.Random(seed)
    drawn = _endless(len(lengths), rng)
    batches: list[list[int]] = []
    while len(batches) < count:
        unseen = len(lengths) - len(batches) * size % len(lengths)
        window = max(1, min(WINDOW, count - len(batches), unseen // size))
        ordered = sorted((next(drawn) for _ in range(window * size)), key=lambda i: lengths[i])
        groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        rng.shuffle(groups)
        batches += groups
    return batches


def _endless(total: int, rng: random.Random) -> Iterator[int]:
    while True:
        order = list(range(total))
        rng.shuffle(order)
        yield from order


def by_length(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return all samples once, in batches of similar length."""
    ordered = sorted(samples, key=lambda s: len(s.tokens))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def padding_share(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Return the fraction of positions that are padding over these batches."""
    real = sum(lengths[i] for batch in batches for i in batch)
    total = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1 - real / total if total else 0.0

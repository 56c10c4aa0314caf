"""Samples and batches: batches of similar length, the same for the same seed, padded for the model."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

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
    """One record as tokens.

    Attributes:
        tokens: of prompt, answer and end mark.
        answer_from: index of the first token that counts for the loss.
        task: of the record.
        question_cut: True if tokens of the question were left out to keep the limit.
        answer_cut: True if tokens at the end of the answer were left out, the end mark with them.
    """

    tokens: tuple[int, ...]
    answer_from: int
    task: str
    question_cut: bool = False
    answer_cut: bool = False


class Samples(Protocol):
    """Samples by number, read and tokenised when they are taken."""

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int], /) -> list[Sample]:
        """Return the samples with these numbers, in this order."""


class SampleList:
    """Samples that are in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, numbers: Sequence[int], /) -> list[Sample]:
        return [self.samples[number] for number in numbers]


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


def draw(total: int, size: int, count: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield windows of drawn samples: their numbers, and the order of the batches that they make.

    Samples are drawn without replacement until all were drawn, then again. A window ends where all samples were drawn:
    otherwise copies of one sample, equal in length, would be in the same batch. What is drawn does not depend on the
    samples, so that only drawn ones have to be read.

    Args:
        total: number of samples.
        size: samples in a batch.
        count: number of batches.
        seed: of the order.
    """
    rng = random.Random(seed)
    drawn, done = _endless(total, rng), 0
    while done < count:
        unseen = total - done * size % total
        window = max(1, min(WINDOW, count - done, unseen // size))
        numbers, order = [next(drawn) for _ in range(window * size)], list(range(window))
        rng.shuffle(order)
        yield numbers, order
        done += window


def _endless(total: int, rng: random.Random) -> Iterator[int]:
    while True:
        order = array("q", range(total))  # 8 bytes for each sample of the shard, the only memory that grows with it
        rng.shuffle(order)
        yield from order


def grouped(lengths: Sequence[int], size: int, order: Sequence[int]) -> list[list[int]]:
    """Return a window's batches as positions in the window: grouped by length, in the given order.

    Args:
        lengths: tokens of each drawn sample.
        size: samples in a batch.
        order: of the batches, as ``draw`` yields it.
    """
    ordered = sorted(range(len(lengths)), key=lambda position: lengths[position])
    return [ordered[number * size : (number + 1) * size] for number in order]


def iter_batches(samples: Samples, size: int, count: int, seed: int, skip: int = 0) -> Iterator[list[Sample]]:
    """Yield ``count`` batches of ``size`` samples; within a window of batches they are grouped by length.

    Args:
        samples: to draw from; only drawn ones are taken, window by window.
        size: samples in a batch.
        count: number of batches.
        seed: of the order.
        skip: number of batches at the start that are not yielded.
    """
    done = 0
    for numbers, order in draw(len(samples), size, count, seed):
        if done + len(order) > skip:
            taken = samples.take(numbers)
            batches = grouped([len(s.tokens) for s in taken], size, order)
            for batch in batches[max(0, skip - done) :]:
                yield [taken[position] for position in batch]
        done += len(order)


def plan_batches(lengths: Sequence[int], size: int, count: int, seed: int) -> list[list[int]]:
    """Return ``count`` batches of ``size`` sample numbers, as ``iter_batches`` makes them, from known lengths.

    Args:
        lengths: tokens of each sample.
        size: samples in a batch.
        count: number of batches.
        seed: of the order.
    """
    return [
        [numbers[position] for position in batch]
        for numbers, order in draw(len(lengths), size, count, seed)
        for batch in grouped([lengths[number] for number in numbers], size, order)
    ]


def by_length(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return all samples once, in batches of similar length."""
    ordered = sorted(samples, key=lambda s: len(s.tokens))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def padded_positions(batch: Sequence[Sample]) -> int:
    """Return the number of positions of a batch whose samples are padded to one length."""
    return max(len(sample.tokens) for sample in batch) * len(batch)

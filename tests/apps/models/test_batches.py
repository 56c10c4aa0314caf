"""Prompts and answers as tokens, and the plan of batches."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from apps.base.errors import UserMistake
from apps.models.batches import (
    WINDOW,
    Sample,
    SampleList,
    by_length,
    collate,
    iter_batches,
    padded_positions,
    plan_batches,
    seed_of,
)
from apps.models.encoding import encode
from data.records import load_records
from data.tokenizer import tiny_tokenizer_path


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer_path()), pad_token="<pad>", eos_token="<eos>")


def data_spec(**changes) -> dict:
    spec = {
        "source": "embedded",
        "tasks": [],
        "per_task": None,
        "max_tokens": 64,
        "prompt": "Q: {input}\nA:",
        "loss_on": "answer",
    }
    return spec | changes


def record(question: str = "What is C?", answer: str = "carbon") -> dict:
    return {"input": question, "output": answer, "task": "naming"}


def test_sample_is_prompt_answer_and_end(tokenizer):
    (sample,) = encode([record()], tokenizer, data_spec())
    assert tokenizer.decode(sample.tokens) == "Q: What is C?\nA: carbon<eos>"
    assert tokenizer.decode(sample.tokens[sample.answer_from :]) == " carbon<eos>"
    assert sample.task == "naming"


def test_braces_in_a_question_are_only_text(tokenizer):
    (sample,) = encode([record("{x} {0} {input}")], tokenizer, data_spec())
    assert "Q: {x} {0} {input}\n" in tokenizer.decode(sample.tokens)


def test_a_long_question_loses_its_end_and_neither_template_nor_answer(tokenizer):
    (whole,) = encode([record("C" * 300)], tokenizer, data_spec(max_tokens=1000))
    answer = whole.tokens[whole.answer_from :]
    (cut,) = encode([record("C" * 300)], tokenizer, data_spec(max_tokens=40))
    assert len(cut.tokens) == 40
    assert cut.tokens[cut.answer_from :] == answer
    text = tokenizer.decode(cut.tokens)
    assert text.startswith("Q: CCCC") and text.endswith("C\nA: carbon<eos>")
    assert (cut.question_cut, cut.answer_cut) == (True, False)
    assert (whole.question_cut, whole.answer_cut) == (False, False)


def test_a_long_answer_loses_its_end_and_its_end_mark(tokenizer):
    (sample,) = encode([record("What?", "N" * 300)], tokenizer, data_spec(max_tokens=32))
    assert len(sample.tokens) == 32
    text = tokenizer.decode(sample.tokens)
    assert text.startswith("Q: What?\nA: NN") and text.endswith("N")
    assert (sample.question_cut, sample.answer_cut) == (False, True)


def test_question_and_answer_that_are_both_too_long_share_the_room(tokenizer):
    (sample,) = encode([record("C" * 300, "N" * 300)], tokenizer, data_spec(max_tokens=64))
    assert (sample.question_cut, sample.answer_cut) == (True, True)
    answer = len(sample.tokens) - sample.answer_from
    assert len(sample.tokens) == 64 and abs(2 * answer - 64) < 12
    assert tokenizer.decode(sample.tokens[: sample.answer_from]).endswith("C\nA:")


def test_a_limit_below_the_template_is_refused(tokenizer):
    with pytest.raises(UserMistake, match=r"data.max_tokens: 16 leaves no room .* \d+ tokens of data.prompt"):
        encode([record()], tokenizer, data_spec(max_tokens=16, prompt="Answer this question of chemistry: {input} so:"))


@settings(max_examples=50, deadline=None)
@given(question=st.text(max_size=80), answer=st.text(max_size=80), max_tokens=st.integers(16, 64))
def test_no_sample_is_too_long_and_each_has_something_to_predict(question, answer, max_tokens, tokenizer):
    (sample,) = encode([record(question, answer)], tokenizer, data_spec(max_tokens=max_tokens))
    assert len(sample.tokens) <= max_tokens
    assert 1 <= sample.answer_from < len(sample.tokens)


def test_start_mark_only_where_the_tokenizer_puts_one(tokenizer):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    assert encode([record()], tokenizer, data_spec())[0].tokens[0] != tokenizer.eos_token_id
    marked = Tokenizer.from_file(str(tiny_tokenizer_path()))
    marked.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    llama = PreTrainedTokenizerFast(tokenizer_object=marked, bos_token="<eos>", eos_token="<eos>", pad_token="<pad>")
    (sample,) = encode([record()], llama, data_spec())
    assert sample.tokens[0] == tokenizer.eos_token_id
    assert sample.tokens[1:] == encode([record()], tokenizer, data_spec())[0].tokens


def test_counted_are_answer_and_end(tokenizer):
    samples = encode([record(), record("Which metal is liquid?", "mercury, of course")], tokenizer, data_spec())
    batch = collate(samples, tokenizer.pad_token_id)
    answers = [s.tokens[s.answer_from :] for s in samples]
    assert batch.counted.sum(1).tolist() == [len(a) for a in answers]
    assert batch.targets.tolist() == [token for answer in answers for token in answer]
    assert all(answer[-1] == tokenizer.eos_token_id for answer in answers)


def test_loss_on_all_counts_every_token_but_the_first(tokenizer):
    samples = encode([record(), record("Which metal is liquid?")], tokenizer, data_spec(loss_on="all"))
    batch = collate(samples, tokenizer.pad_token_id)
    assert batch.targets.tolist() == [token for s in samples for token in s.tokens[1:]]


def test_collate_masks_padding():
    batch = collate([Sample((5, 6, 7, 8), 2, "a"), Sample((5, 6), 1, "b"), Sample((9,), 0, "c")], pad=0)
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0], [9, 0, 0, 0]]
    assert batch.attention.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.counted.int().tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.targets.tolist() == [7, 8, 6]
    assert batch.tasks == ("a", "b", "c")
    assert batch.to("cpu").tokens.tolist() == batch.tokens.tolist()


def test_pad_may_be_the_end_mark():
    batch = collate([Sample((5, 6, 1), 1, "a"), Sample((5, 1), 1, "a")], pad=1)
    assert batch.targets.tolist() == [6, 1, 1]
    assert batch.attention.sum().item() == 5


plans = st.tuples(st.integers(1, 200), st.integers(1, 9), st.integers(0, 60), st.integers(0, 5))


@settings(max_examples=100, deadline=None)
@given(plan=plans)
def test_plan_has_the_given_size_and_is_the_same_for_the_same_seed(plan):
    total, size, count, seed = plan
    lengths = [random.Random(i).randrange(1, 50) for i in range(total)]
    batches = plan_batches(lengths, size, count, seed)
    assert [len(b) for b in batches] == [size] * count
    assert all(0 <= i < total for b in batches for i in b)
    assert plan_batches(lengths, size, count, seed) == batches


@settings(max_examples=100, deadline=None)
@given(plan=plans)
def test_no_sample_comes_again_before_all_were_seen(plan):
    """At the end of any window, the counts of any two samples differ by at most one."""
    total, size, _, seed = plan
    batches = plan_batches(list(range(total)), size, 4 * (total // size + 1), seed)
    seen = collections.Counter(i for batch in batches for i in batch)
    assert max(seen.values()) - min(seen[i] for i in range(total)) <= 1
    whole = total // size  # batches that lie in the first pass over the samples
    drawn = [i for batch in batches[:whole] for i in batch]
    assert len(set(drawn)) == len(drawn)


@settings(max_examples=100, deadline=None)
@given(total=st.integers(8, 60), seed=st.integers(0, 50))
def test_small_shards_do_not_fill_a_batch_with_copies_of_one_sample(total, seed):
    """Copies of a sample have equal lengths: sorted over several passes they would be in the same batch."""
    size, passes = 4, 6
    batches = plan_batches(list(range(total)), size, passes * total // size, seed)
    repeated = sum(len(set(batch)) < size for batch in batches)
    assert repeated <= passes  # at most in the batch that crosses from one pass to the next
    assert all(len(set(batch)) >= size // 2 for batch in batches)


def test_other_seed_other_order():
    lengths = list(range(100))
    assert plan_batches(lengths, 4, 10, 1) != plan_batches(lengths, 4, 10, 2)


def test_like_lengths_together_save_padding(tokenizer):
    records = load_records("embedded", "train", per_task=60)
    lengths = [len(s.tokens) for s in encode(records, tokenizer, data_spec(max_tokens=256))]
    size, count = 8, len(records) // 8
    rng = random.Random(0)
    order = rng.sample(range(len(lengths)), size * count)
    at_random = [order[i : i + size] for i in range(0, len(order), size)]
    planned = plan_batches(lengths, size, count, 0)
    assert count > WINDOW
    assert padding(planned, lengths) < 0.3 * padding(at_random, lengths)
    means = [sum(lengths[i] for i in batch) / size for batch in planned]
    assert means != sorted(means)  # the batches themselves are shuffled


def padding(batches, lengths):
    real = sum(lengths[i] for batch in batches for i in batch)
    return 1 - real / sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)


def test_padded_positions():
    assert padded_positions([Sample((1, 2, 3, 4), 1, "a"), Sample((1, 2), 1, "a")]) == 8


class Counted(SampleList):
    """Samples that record which of them were taken."""

    def __init__(self, samples):
        super().__init__(samples)
        self.taken = []

    def take(self, numbers, /):
        self.taken += numbers
        return super().take(numbers)


@settings(max_examples=100, deadline=None)
@given(plan=plans, skip=st.integers(0, 60))
def test_only_drawn_samples_are_taken_and_skipped_windows_are_not(plan, skip):
    total, size, count, seed = plan
    samples = Counted([Sample(tuple(range(random.Random(i).randrange(1, 50))), 1, str(i)) for i in range(total)])
    planned = plan_batches([len(s.tokens) for s in samples.samples], size, count, seed)
    found = [[int(s.task) for s in batch] for batch in iter_batches(samples, size, count, seed, skip)]
    assert found == planned[skip:]
    assert len(samples.taken) <= size * min(count, max(0, count - skip) + WINDOW)


def shuffled_first(total: int, size: int, count: int, seed: int) -> list[int]:
    """Draw as every run before did: a list of all numbers, shuffled."""
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order[: size * count]


def test_the_drawn_samples_are_those_of_earlier_runs():
    batches = plan_batches([1] * 1000, 8, 16, 7)
    assert sorted(i for batch in batches for i in batch) == sorted(shuffled_first(1000, 8, 16, 7))
    assert batches[0] == [487, 139, 314, 359, 10, 653, 415, 334]


def test_by_length_has_every_sample_once():
    samples = [Sample(tuple(range(n)), 1, "t") for n in (5, 2, 9, 3, 7)]
    batches = by_length(samples, 2)
    assert [[len(s.tokens) for s in b] for b in batches] == [[2, 3], [5, 7], [9]]


def test_seed_is_stable():
    assert seed_of(1, "aurora", 2) == seed_of("1", "aurora", "2") == 45_937_407_444_056_707
    assert len({seed_of(1, site, r) for site in ("a", "b") for r in range(5)}) == 10
    assert 0 <= seed_of("x") < 2**56

"""Prompts and answers as tokens, and the plan of batches."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from apps.models.batches import WINDOW, Sample, by_length, collate, encode, padding_share, plan_batches, seed_of
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


def test_too_long_loses_the_start_of_the_prompt_never_the_answer(tokenizer):
    (whole,) = encode([record("C" * 300)], tokenizer, data_spec(max_tokens=1000))
    answer = whole.tokens[whole.answer_from :]
    for max_tokens in (len(answer) + 1, 16, 40, len(whole.tokens) - 1):
        (cut,) = encode([record("C" * 300)], tokenizer, data_spec(max_tokens=max_tokens))
        assert len(cut.tokens) == max_tokens
        assert cut.tokens == whole.tokens[-max_tokens:]
        assert cut.tokens[cut.answer_from :] == answer


def test_answer_that_alone_is_too_long_keeps_one_token_of_the_prompt(tokenizer):
    (sample,) = encode([record(answer="N" * 300)], tokenizer, data_spec(max_tokens=16))
    assert len(sample.tokens) == 16
    assert sample.answer_from == 1


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
    assert padding_share(planned, lengths) < 0.3 * padding_share(at_random, lengths)
    means = [sum(lengths[i] for i in batch) / size for batch in planned]
    assert means != sorted(means)  # the batches themselves are shuffled


def test_padding_share_is_counted_over_positions():
    assert padding_share([[0, 1], [2]], [4, 2, 3]) == pytest.approx(1 - 9 / 11)
    assert padding_share([], []) == 0.0


def test_by_length_has_every_sample_once():
    samples = [Sample(tuple(range(n)), 1, "t") for n in (5, 2, 9, 3, 7)]
    batches = by_length(samples, 2)
    assert [[len(s.tokens) for s in b] for b in batches] == [[2, 3], [5, 7], [9]]


def test_seed_is_stable():
    assert seed_of(1, "aurora", 2) == seed_of("1", "aurora", "2") == 45_937_407_444_056_707
    assert len({seed_of(1, site, r) for site in ("a", "b") for r in range(5)}) == 10
    assert 0 <= seed_of("x") < 2**56

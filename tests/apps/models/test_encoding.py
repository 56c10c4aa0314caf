"""Records as tokens with Llama's kinds of tokenizers: LlaSMol's one text, its start mark, and what a cut leaves."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from apps.models.encoding import encode, prompt_of
from apps.models.model import load_tokenizer
from data.records import load_records

LLASMOL = {"max_tokens": 512, "prompt": "[INST] {input} [/INST]", "loss_on": "answer"}
RECORDS = load_records("embedded", "train", None, 5)


def llama_like(kind: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer with the parts of Llama's: ``prepend`` has the normaliser of its tokenizer.json."""
    texts = [f"[INST] {r['input']} [/INST] {r['output']}" for r in RECORDS]
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=kind != "prepend")
    backend = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.train_from_iterator(texts, BpeTrainer(vocab_size=2000, special_tokens=["<unk>", "<s>", "</s>"]))
    if kind == "prepend":
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer, backend.pre_tokenizer = normalizers.Sequence(blanks), None
    else:
        backend.pre_tokenizer = words
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
def test_a_sample_has_the_tokens_of_llasmols_text(kind: str) -> None:
    tokenizer = llama_like(kind)
    for record, sample in zip(RECORDS, encode(RECORDS, tokenizer, LLASMOL), strict=True):
        text = f"[INST] {record['input']} [/INST] {record['output']}"
        whole = [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        assert list(sample.tokens) == whole
        answer = tokenizer.convert_ids_to_tokens(sample.tokens[sample.answer_from :])
        assert "".join(answer[:-1]).replace("▁", " ") == f" {record['output']}"


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
@pytest.mark.parametrize(
    ("question", "answer"), [("q " * 900, "ok"), ("q", "a b c " * 300), ("q " * 900, "a b " * 300)]
)
def test_a_cut_sample_keeps_its_start_mark_and_the_template(kind: str, question: str, answer: str) -> None:
    tokenizer = llama_like(kind)
    record = {"input": question, "output": answer, "task": "t"}
    (sample,) = encode([record], tokenizer, {**LLASMOL, "max_tokens": 64})
    assert len(sample.tokens) == 64 and sample.tokens[0] == tokenizer.bos_token_id
    prompt = "".join(tokenizer.convert_ids_to_tokens(sample.tokens[1 : sample.answer_from])).replace("▁", " ")
    assert prompt.startswith(" [INST] q") and prompt.endswith(" [/INST]")
    assert (sample.tokens[-1] == tokenizer.eos_token_id) == (answer == "ok") == (not sample.answer_cut)
    assert sample.question_cut == (question != "q")


class InPython:
    """A tokenizer without offsets, as some models have only one in Python."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, text: Any, **options: Any) -> dict[str, Any]:
        return {"input_ids": self.tokenizer(text, **options)["input_ids"]}


@pytest.mark.parametrize("max_tokens", [512, 40])
def test_a_tokenizer_without_offsets_gives_the_same_samples(max_tokens: int) -> None:
    tokenizer = load_tokenizer({"source": "tiny"})
    spec = {"max_tokens": max_tokens, "prompt": "Q: {input}\nA:", "loss_on": "answer"}
    assert encode(RECORDS, InPython(tokenizer), spec) == encode(RECORDS, tokenizer, spec)


def test_a_template_may_have_braces_and_the_question_twice() -> None:
    prompt = prompt_of("{{q}} {input}, again: {input}!")
    assert (prompt.head, prompt.tail) == ("{q} ", "!")
    assert prompt.text({"input": "x"}) == "{q} x, again: x!"
    assert (prompt_of("{input}").head, prompt_of("{input}").tail) == ("", "")

"""Records as tokens: prompt and answer are one text, encoded once, and cut where a sample is too long.

One text, because some tokenizers put a blank in front of every text: an answer that is encoded apart would begin with
a token that the model never sees there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from string import Formatter
from typing import Any

from apps.base.errors import UserMistake
from apps.models.batches import DataSpec, Sample

CHUNK = 1000  # records that are encoded at a time: enough for several threads
Cuts = dict[str, dict[str, int]]  # task -> samples whose "question" or "answer" is cut


@dataclass(frozen=True)
class Prompt:
    """The template of the question around ``{input}``; ``head`` and ``tail`` are its fixed ends."""

    template: str
    head: str
    tail: str

    def text(self, record: Mapping[str, Any]) -> str:
        """Return the question of a record as the model reads it."""
        return self.template.format(input=record["input"])


def prompt_of(template: str) -> Prompt:
    """Split a template at its first and its last ``{input}``."""
    parts = list(Formatter().parse(template))
    fields = [number for number, part in enumerate(parts) if part[1] is not None]
    return Prompt(
        template,
        head="".join(text for text, *_ in parts[: fields[0] + 1]),
        tail="".join(text for text, *_ in parts[fields[-1] + 1 :]),
    )


def encode(records: Sequence[Any], tokenizer: Any, spec: DataSpec) -> list[Sample]:
    """Return the tokens of prompt, answer and end mark.

    A sample over the limit keeps its start mark and the template; question and answer share what is left. Each may use
    what the other does not need, and none is cut below half of it. The question loses its end, and so does the answer,
    its end mark first.

    Args:
        records: with ``input``, ``output`` and ``task``.
        tokenizer: of the model.
        spec: with the prompt and the limit of tokens.

    Raises:
        UserMistake: the limit leaves no room beside the template.
    """
    prompt = prompt_of(spec["prompt"])
    prompts = [prompt.text(record) for record in records]
    texts = [f"{question} {record['output']}" for question, record in zip(prompts, records, strict=True)]
    start = [tokenizer.bos_token_id] if _wants_bos(tokenizer) else []
    samples = []
    for record, question, (tokens, index_of) in zip(records, prompts, _encoded(tokenizer, texts), strict=True):
        ends = len(prompt.head), len(question) - len(prompt.tail), len(question)
        samples.append(_sample(record["task"], start, tokens, [index_of(at) for at in ends], tokenizer, spec))
    return samples


def _sample(
    task: str, start: list[int], tokens: list[int], at: Sequence[int], tokenizer: Any, spec: DataSpec
) -> Sample:
    """Return a sample, cut to the limit; ``at`` are the first tokens of input, tail and answer."""
    head, question, tail = start + tokens[: at[0]], tokens[at[0] : at[1]], tokens[at[1] : at[2]]
    answer = [*tokens[at[2] :], tokenizer.eos_token_id]
    room = spec["max_tokens"] - len(head) - len(tail)
    if room < 2:
        raise UserMistake(
            f"data.max_tokens: {spec['max_tokens']} leaves no room for question and answer beside the"
            f" {len(head) + len(tail)} tokens of data.prompt",
            remedy="Raise data.max_tokens or shorten data.prompt",
        )
    kept = len(question), len(answer)
    if sum(kept) > room:
        kept = _shared(room, *kept)
    prompt = [*head, *question[: kept[0]], *tail]
    counted_from = len(prompt) if spec["loss_on"] == "answer" else 1
    return Sample(
        (*prompt, *answer[: kept[1]]), counted_from, task, kept[0] < len(question), answer_cut=kept[1] < len(answer)
    )


def _shared(room: int, question: int, answer: int) -> tuple[int, int]:
    """Return how many tokens question and answer keep: each what the other does not need, at least half."""
    kept = min(question, max(room // 2, room - answer))
    return kept, room - kept


def _encoded(tokenizer: Any, texts: list[str]) -> Iterator[tuple[list[int], Callable[[int], int]]]:
    """Yield the tokens of each text, and a function: position of a character -> the first token at or after it."""
    encoded = tokenizer(texts, add_special_tokens=False)
    for number, text in enumerate(texts):
        tokens = list(encoded["input_ids"][number])
        if tokenizer.is_fast:
            yield tokens, _by_offsets(encoded[number], len(text), len(tokens))
        else:
            yield tokens, _by_prefix(tokenizer, text, tokens)


def _by_offsets(encoding: Any, length: int, count: int) -> Callable[[int], int]:
    def index_of(at: int) -> int:
        found = (encoding.char_to_token(position) for position in range(at, length))  # None: blanks that are trimmed
        return next((token for token in found if token is not None), count)

    return index_of


def _by_prefix(tokenizer: Any, text: str, tokens: list[int]) -> Callable[[int], int]:
    """Find positions by encoding the text before them: tokenizers in Python know no offsets."""

    def index_of(at: int) -> int:
        before = tokenizer([text[:at]], add_special_tokens=False)["input_ids"][0] if at else []
        pairs = zip(before, tokens, strict=False)
        return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(before), len(tokens)))

    return index_of


def _wants_bos(tokenizer: Any) -> bool:
    """Return True for Llama-like tokenizers, which put a start mark before every text; GPT-like ones do not."""
    with_marks = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and with_marks[:1] == [tokenizer.bos_token_id]


def count_cuts(records: Iterable[Any], load_tokenizer: Callable[[], Any], spec: DataSpec, threads: int) -> Cuts:
    """Count for each task the samples that are cut at ``spec["max_tokens"]``; tasks without any are left out.

    A text of n ASCII characters has at most n tokens, and some tokenizers put a blank in front: what is so short is
    not encoded. The tokenizer is loaded only if a longer one comes.

    Args:
        records: to be counted, read once.
        load_tokenizer: returns the tokenizer of the model.
        spec: with the prompt and the limit of tokens.
        threads: that encode.
    """
    prompt, cuts = prompt_of(spec["prompt"]), Cuts()
    long = (record for record in records if _may_be_cut(prompt.text(record) + record["output"], spec["max_tokens"]))
    tokenizer = None
    with _encoding_threads(threads):
        while chunk := list(islice(long, CHUNK)):
            tokenizer = tokenizer or load_tokenizer()
            for sample in encode(chunk, tokenizer, spec):
                if sample.question_cut or sample.answer_cut:
                    found = cuts.setdefault(sample.task, {"question": 0, "answer": 0})
                    found["question"] += sample.question_cut
                    found["answer"] += sample.answer_cut
    return cuts


def _may_be_cut(text: str, limit: int) -> bool:
    marks = 4  # start, end, the blank between question and answer, and one that a tokenizer may put in front
    return len(text) + marks > limit or not text.isascii()


@contextmanager
def _encoding_threads(threads: int) -> Iterator[None]:
    """Let the tokenizers library use so many threads; it takes the number when it is used first."""
    names = {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false", "RAYON_NUM_THREADS": str(threads)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

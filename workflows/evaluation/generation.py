"""Generate answers to questions with a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from apps.base.errors import UserMistake
from apps.models.batches import DataSpec
from apps.models.encoding import encode
from apps.models.model import Model
from workflows.evaluation.loading import LoadedModel

BATCH = 16  # questions at once: a step costs little more for sixteen than for one
MIN_PROMPT = 16  # tokens of a question that must fit before its answer
SPARE = 16  # tokens beyond the longest right answer: a wrong one may be a little longer


@dataclass(frozen=True)
class Completion:
    """Generated text; ``cut`` is True if it reached the limit of tokens before it ended."""

    text: str
    cut: bool


def generate_answers(
    loaded: LoadedModel,
    questions: Sequence[str],
    data: DataSpec,
    new_tokens: int,
    on_done: Callable[[int], object] = lambda _count: None,
) -> list[Completion]:
    """Generate an answer to each question by greedy decoding.

    Args:
        loaded: the model.
        questions: without the campaign's template.
        data: with the template.
        new_tokens: limit for each answer.
        on_done: called after each batch with its number of answers.

    Raises:
        UserMistake: so many tokens do not fit into the model's context.
    """
    import torch

    prompts = prompt_tokens(loaded.model, questions, data, new_tokens) if questions else []
    answers: list[Completion] = []
    loaded.model.network.eval()
    with loaded.active(), torch.inference_mode():
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            answers += _generate_batch(loaded.model, batch, new_tokens)
            on_done(len(batch))
    return answers


def answer_limit(model: Model, answers: Sequence[str]) -> int:
    """Return the limit of new tokens that cuts none of these right answers, as far as the model's context allows."""
    tokenizer: Any = model.tokenizer
    config: Any = model.network.config
    longest = max(len(tokens) for tokens in tokenizer(list(answers), add_special_tokens=False)["input_ids"])
    return min(longest + SPARE, int(config.max_position_embeddings) - MIN_PROMPT)


def prompt_tokens(model: Model, questions: Sequence[str], data: DataSpec, new_tokens: int) -> list[tuple[int, ...]]:
    """Return the tokens of the questions in the campaign's template, as in training; the start of long ones is cut."""
    config: Any = model.network.config
    room = config.max_position_embeddings - new_tokens
    if room < MIN_PROMPT:
        most = config.max_position_embeddings - MIN_PROMPT
        raise UserMistake(f"--tokens {new_tokens}: this model has room for {most} at most")
    records = [{"input": question, "output": "", "task": ""} for question in questions]
    settings: DataSpec = {**data, "max_tokens": room, "loss_on": "answer"}
    return [sample.tokens[: sample.answer_from] for sample in encode(records, model.tokenizer, settings)]


def _generate_batch(model: Model, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[Completion]:
    from transformers import GenerationConfig

    network: Any = model.network
    tokenizer: Any = model.tokenizer
    tokens, attention = left_padded(prompts, tokenizer.pad_token_id)
    greedy = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    out = network.generate(
        input_ids=tokens.to(network.device), attention_mask=attention.to(network.device), generation_config=greedy
    )
    return [_completion(row, tokenizer) for row in out[:, tokens.shape[1] :].tolist()]


def left_padded(prompts: Sequence[tuple[int, ...]], pad: int) -> tuple[Any, Any]:
    """Return tokens and attention mask, both (batch, length); padding is on the left, because answers follow."""
    import torch

    length = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, attention


def _completion(tokens: list[int], tokenizer: Any) -> Completion:
    """Decode the tokens up to the end-of-sequence token."""
    cut = tokenizer.eos_token_id not in tokens
    kept = tokens if cut else tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text.strip(), cut)

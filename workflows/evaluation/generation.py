"""The trained model of a run beside its base model: loading both, and answering questions with them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.artifacts.store import artifact_path
from apps.base.errors import UserMistake
from apps.models.batches import DataSpec, encode
from apps.models.model import Model, ModelSpec, load_first_model, quiet, set_state
from apps.models.sources import TINY
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import model_spec
from workflows.records.journal import read_journal
from workflows.records.run_directory import is_finished, resume_hint

TRAINED, BASE = "trained", "base"
BATCH = 16  # questions at once: a step costs little more for sixteen than for one
MIN_PROMPT = 16  # tokens of a question that must find room before its answer


@dataclass(frozen=True)
class FinishedRun:
    """A run directory that holds its final model."""

    path: Path
    campaign: Campaign

    @property
    def model_folder(self) -> Path:
        return self.path / "model"


@dataclass(frozen=True)
class LoadedModel:
    """A model to be asked. The base of an adapter is the same network with the adapter switched off."""

    name: str
    model: Model
    adapter_off: bool = False

    def active(self) -> AbstractContextManager[Any]:
        """Within it the model's network is this candidate."""
        network: Any = self.model.network
        return network.disable_adapter() if self.adapter_off else nullcontext()


@dataclass(frozen=True)
class Completion:
    """What a model said; ``cut`` where it had not ended when its tokens ran out."""

    text: str
    cut: bool


def open_finished(path: Path) -> FinishedRun:
    """A run whose model can be asked.

    Raises:
        UserMistake: no run directory, or one without its final model; says what to do.
    """
    if not (path / "campaign.yaml").is_file():
        raise UserMistake(f"{path} is no run directory: it has no campaign.yaml")
    run = FinishedRun(path, load_campaign(path / "campaign.yaml"))
    if not any((run.model_folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise _without_model(run)
    return run


def _without_model(run: FinishedRun) -> UserMistake:
    if is_finished(run.path):
        return UserMistake(f"{run.path} is finished, but its folder model/ is gone", remedy="Bring it back from a copy")
    done = len({record["round"] for record in _records(run.path) if record["event"] == "aggregated"})
    planned = plural(run.campaign.rounds, run.campaign.period)
    return UserMistake(
        f"{run.path} is unfinished ({done} of {planned} done) and has no model yet",
        remedy=f"Wait while its driver works, or {resume_hint(run.path)}",
    )


def _records(path: Path) -> list[dict[str, Any]]:
    journal = path / "journal.jsonl"
    return list(read_journal(journal)) if journal.exists() else []


def make_ready(run: FinishedRun, threads: int | None) -> None:
    """Threads as asked, else as the campaign evaluates: with more than there are free cores, torch gets very slow.

    Libraries' warnings and advice are silenced, so that only what is meant for the user reaches the terminal.
    """
    import torch

    torch.set_num_threads(threads or run.campaign.evaluation.threads)
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    quiet()


def load_candidates(run: FinishedRun, with_base: bool = True) -> list[LoadedModel]:
    """The base model, if asked for, and the trained one as its users load it, on the best device there is.

    Raises:
        UserMistake: the model folder is damaged or of another model.
    """
    from safetensors import SafetensorError

    spec, device = model_spec(run.campaign), best_device()
    try:
        if (run.model_folder / "adapter_config.json").is_file():
            return _load_adapted(run, spec, device, with_base)
        return _load_full(run, {**spec, "adapter": None}, device, with_base)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserMistake(f"{run.model_folder} cannot be loaded: {reason}") from error


def best_device() -> str:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def _load_adapted(run: FinishedRun, spec: ModelSpec, device: str, with_base: bool) -> list[LoadedModel]:
    """One network for both; its base is what the campaign names, since the adapter's own path may be elsewhere."""
    model = load_first_model(spec, device)
    network: Any = model.network
    network.load_adapter(run.model_folder, "default")
    return [LoadedModel(BASE, model, adapter_off=True)] * with_base + [LoadedModel(TRAINED, model)]


def _load_full(run: FinishedRun, spec: ModelSpec, device: str, with_base: bool) -> list[LoadedModel]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(run.model_folder, dtype=getattr(torch, spec["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    trained = LoadedModel(TRAINED, Model(spec, network.to(device), tokenizer, {}))
    return [LoadedModel(BASE, _base_model(run, spec, device)), trained] if with_base else [trained]


def _base_model(run: FinishedRun, spec: ModelSpec, device: str) -> Model:
    """The model before the campaign; one from scratch is that of round 0, or drawn again from its seed."""
    model = load_first_model(spec, device)
    first = next((r for r in _records(run.path) if r["event"] == "task_done" and r["app"] == "prepare"), None)
    if spec["source"] == TINY and first and not run.campaign.model.adapter:
        path = artifact_path(run.path / "artifacts", first["result"]["artifact"])
        if path.is_file():
            set_state(model, path)
    return model


def data_spec(run: FinishedRun) -> DataSpec:
    """How the campaign puts its questions."""
    data = run.campaign.data
    return DataSpec(
        source=data.source,
        tasks=data.tasks or [],
        per_task=None,
        max_tokens=data.max_tokens,
        prompt=data.prompt,
        loss_on=data.loss_on,
    )


def generate_answers(
    candidate: LoadedModel,
    questions: Sequence[str],
    data: DataSpec,
    new_tokens: int,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[Completion]:
    """Greedy answers of at most ``new_tokens`` tokens; ``on_done`` hears how many more questions are answered.

    Raises:
        UserMistake: so many tokens do not fit into the model's context.
    """
    import torch

    prompts = prompt_tokens(candidate.model, questions, data, new_tokens) if questions else []
    answers: list[Completion] = []
    candidate.model.network.eval()
    with candidate.active(), torch.inference_mode():
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            answers += _ask_batch(candidate.model, batch, new_tokens)
            on_done(len(batch))
    return answers


def prompt_tokens(model: Model, questions: Sequence[str], data: DataSpec, new_tokens: int) -> list[tuple[int, ...]]:
    """The questions in the campaign's template, as training saw them; what is too long loses its start."""
    config: Any = model.network.config
    room = config.max_position_embeddings - new_tokens
    if room < MIN_PROMPT:
        most = config.max_position_embeddings - MIN_PROMPT
        raise UserMistake(f"--tokens {new_tokens}: this model has room for {most} at most")
    asked = [{"input": question, "output": "", "task": ""} for question in questions]
    settings: DataSpec = {**data, "max_tokens": room, "loss_on": "answer"}
    return [sample.tokens[: sample.answer_from] for sample in encode(asked, model.tokenizer, settings)]


def _ask_batch(model: Model, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[Completion]:
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
    return [_answer(row, tokenizer) for row in out[:, tokens.shape[1] :].tolist()]


def left_padded(prompts: Sequence[tuple[int, ...]], pad: int) -> tuple[Any, Any]:
    """Tokens and the mask of real ones (batch, length), each prompt at the end of its row, where answers begin."""
    import torch

    length = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, attention


def _answer(tokens: list[int], tokenizer: Any) -> Completion:
    """The text up to the end mark."""
    cut = tokenizer.eos_token_id not in tokens
    said = tokens if cut else tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text.strip(), cut)

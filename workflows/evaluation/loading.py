"""Open a finished run and load its trained model and its base model."""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.artifacts.store import artifact_path
from apps.base.errors import UserMistake
from apps.models.batches import DataSpec
from apps.models.model import Model, ModelSpec, load_first_model, quiet, set_state
from apps.models.sources import TINY
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import model_spec
from workflows.records.journal import read_journal
from workflows.records.run_directory import is_finished, resume_hint

TRAINED, BASE = "trained", "base"


@dataclass(frozen=True)
class FinishedRun:
    """A run directory with its final model."""

    path: Path
    campaign: Campaign

    @property
    def model_folder(self) -> Path:
        return self.path / "model"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for inference. The base of an adapter is the same network with the adapter switched off."""

    name: str
    model: Model
    adapter_off: bool = False

    def active(self) -> AbstractContextManager[Any]:
        """Return a context in which the network computes as this model."""
        network: Any = self.model.network
        return network.disable_adapter() if self.adapter_off else nullcontext()


def open_finished(path: Path) -> FinishedRun:
    """Open a run that has its final model.

    Raises:
        UserMistake: not a run directory, or one without its final model; with the remedy.
    """
    if not (path / "campaign.yaml").is_file():
        raise UserMistake(f"{path} is no run directory: it has no campaign.yaml")
    run = FinishedRun(path, load_campaign(path / "campaign.yaml"))
    if not any((run.model_folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise _without_model(run)
    return run


def _without_model(run: FinishedRun) -> UserMistake:
    if is_finished(run.path):
        return UserMistake(f"{run.path} is finished, but its folder model/ is missing", remedy="Restore it from a copy")
    done = len({record["round"] for record in _records(run.path) if record["event"] == "aggregated"})
    planned = plural(run.campaign.rounds, run.campaign.period)
    return UserMistake(
        f"{run.path} is unfinished ({done} of {planned} done) and has no model yet",
        remedy=f"Wait while its driver works, or {resume_hint(run.path)}",
    )


def _records(path: Path) -> list[dict[str, Any]]:
    journal = path / "journal.jsonl"
    return list(read_journal(journal)) if journal.exists() else []


def configure_libraries(run: FinishedRun, threads: int | None) -> None:
    """Set the number of threads and silence warnings of libraries, so that only our output reaches the terminal.

    Args:
        run: whose campaign has the default: with more threads than free cores, torch gets very slow.
        threads: instead of the campaign's.
    """
    import torch

    wanted = run.campaign.evaluation.threads
    torch.set_num_threads(threads or (1 if wanted == "auto" else wanted))
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    quiet()


def load_models(run: FinishedRun, with_base: bool = True) -> list[LoadedModel]:
    """Load the base model, if wanted, and the trained model, on the best available device.

    Raises:
        UserMistake: the model folder is damaged, or belongs to another model.
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
    """Load one network for both; its base is the campaign's, since the path in the adapter's file may be outdated."""
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
    """Load the model before the campaign; one from scratch is that of round 0, or is made again from its seed."""
    model = load_first_model(spec, device)
    first = next((r for r in _records(run.path) if r["event"] == "task_done" and r["app"] == "prepare"), None)
    if spec["source"] == TINY and first and not run.campaign.model.adapter:
        path = artifact_path(run.path / "artifacts", first["result"]["artifact"])
        if path.is_file():
            set_state(model, path)
    return model


def data_spec(run: FinishedRun) -> DataSpec:
    """Return the campaign's settings for encoding samples."""
    data = run.campaign.data
    return DataSpec(
        source=data.source,
        tasks=data.tasks or [],
        per_task=None,
        max_tokens=data.max_tokens,
        prompt=data.prompt,
        loss_on=data.loss_on,
    )

"""Load a chosen model of a run and its base model."""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from apps.artifacts.store import artifact_path
from apps.base.errors import UserMistake
from apps.models.batches import DataSpec
from apps.models.loading import load_network, load_tokenizer
from apps.models.model import Model, ModelSpec, load_first_model, quiet, set_state
from apps.models.sources import TINY
from workflows.evaluation.choice import OpenedRun, run_records
from workflows.planning.plan import model_spec

TRAINED, BASE = "trained", "base"


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


def configure_libraries(run: OpenedRun, threads: int | None) -> None:
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


def load_models(run: OpenedRun, with_base: bool = True) -> list[LoadedModel]:
    """Load the base model, if wanted, and the trained model, on the best available device.

    Raises:
        UserMistake: the model folder is damaged, or belongs to another model.
    """
    from safetensors import SafetensorError

    spec, device = model_spec(run.campaign), best_device()
    try:
        if run.chosen.file is not None:
            return _load_artifact(run, spec, device, with_base)
        if (run.model_folder / "adapter_config.json").is_file():
            return _load_adapted(run, spec, device, with_base)
        return _load_full(run, {**spec, "adapter": None}, device, with_base)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserMistake(f"{run.chosen.file or run.model_folder} cannot be loaded: {reason}") from error


def best_device() -> str:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def _load_adapted(run: OpenedRun, spec: ModelSpec, device: str, with_base: bool) -> list[LoadedModel]:
    """Load one network for both; its base is the campaign's, since the path in the adapter's file may be outdated."""
    model = load_first_model(spec, device)
    network: Any = model.network
    missing = sorted(network.load_adapter(run.model_folder, "default").missing_keys)
    if missing:
        raise UserMistake(f"{run.model_folder} lacks {len(missing)} tensors of the adapter, such as {missing[0]}")
    return [LoadedModel(BASE, model, adapter_off=True)] * with_base + [LoadedModel(TRAINED, model)]


def _load_artifact(run: OpenedRun, spec: ModelSpec, device: str, with_base: bool) -> list[LoadedModel]:
    """Load a global model from the artifact that the server made."""
    model = load_first_model(spec, device)
    assert run.chosen.file is not None
    set_state(model, run.chosen.file)
    trained = LoadedModel(TRAINED, model)
    if not with_base:
        return [trained]
    adapter_off = bool(spec["adapter"]) and not model.originals
    base = (
        LoadedModel(BASE, model, adapter_off=True) if adapter_off else LoadedModel(BASE, _base_model(run, spec, device))
    )
    return [base, trained]


def _load_full(run: OpenedRun, spec: ModelSpec, device: str, with_base: bool) -> list[LoadedModel]:
    import torch

    tokenizer = load_tokenizer(run.model_folder, str(run.path))
    network, _ = load_network(run.model_folder, getattr(torch, spec["dtype"]), str(run.path))
    trained = LoadedModel(TRAINED, Model(spec, network.to(device), tokenizer, {}))
    return [LoadedModel(BASE, _base_model(run, spec, device)), trained] if with_base else [trained]


def _base_model(run: OpenedRun, spec: ModelSpec, device: str) -> Model:
    """Load the model before the campaign; one from scratch is that of round 0, or is made again from its seed."""
    model = load_first_model(spec, device)
    first = next((r for r in run_records(run.path) if r["event"] == "task_done" and r["app"] == "prepare"), None)
    if spec["source"] == TINY and first and not run.campaign.model.adapter:
        path = artifact_path(run.path / "artifacts", first["result"]["artifact"])
        if path.is_file():
            set_state(model, path)
    return model


def data_spec(run: OpenedRun) -> DataSpec:
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

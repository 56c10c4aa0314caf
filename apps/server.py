"""The tasks of the server: the first model, aggregation, and the model that people take away."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from apps.artifacts.lora import aggregate_adapters
from apps.artifacts.server_optimizer import ServerRuleSpec, optimizer_step
from apps.artifacts.store import verify
from apps.artifacts.weighted_sum import affine_combination, weighted_sum
from apps.base.errors import UserMistake, placed
from apps.base.files import cannot_write
from apps.base.identity import Place
from apps.base.versions import require_same_code
from apps.models.model import (
    ModelSpec,
    full_nbytes,
    load_first_model,
    load_model,
    save_for_users,
    save_state,
    set_state,
)

LINEAR_METHODS = ("fedit", "ffa")  # adapter methods that sum tensor by tensor


class ServerWork(TypedDict):
    """What stays the same for the server over a campaign, in plain values."""

    store: str  # the server's folder of artifacts
    model: ModelSpec
    threads: int
    code_version: str


def prepare(place: Place, work: ServerWork) -> dict[str, Any]:
    """The model that round 1 starts from, and its sizes."""
    import torch

    started = time.time()
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        model = load_first_model(work["model"])
        artifact = save_state(model, work["store"], "adapter" if work["model"]["adapter"] else "model")
    return {
        "artifact": artifact,
        "store": work["store"],
        "full_nbytes": full_nbytes(model),
        "frozen": model.fingerprint,
        "parameters": model.network.num_parameters(),
        "trainable": sum(t.numel() for t in model.trained.values()),
        "started": started,
        "ended": time.time(),
    }


def aggregate(
    place: Place,
    work: ServerWork,
    base: dict[str, Any],
    weights: Sequence[float],
    version: int,
    *updates: dict[str, Any],
) -> dict[str, Any]:
    """The next global model.

    Args:
        place: the server and the round.
        work: what stays the same over a campaign.
        base: the result that carries the global model the updates started from.
        weights: sum to one for a mean.
        version: number of the model that comes out; with the campaign's seed it seeds what starts anew.
        updates: stage-in results, in the order of ``weights``.
    """
    import torch

    started = time.time()
    store, adapter = work["store"], work["model"]["adapter"]
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        terms = [(verify(store, u["artifact"]), float(w)) for u, w in zip(updates, weights, strict=True)]
        if adapter:
            seed = work["model"]["seed"] + version
            artifact = aggregate_adapters(terms, verify(store, base["artifact"]), adapter["method"], store, seed)
        else:
            artifact = weighted_sum(terms, store)
    return {
        "artifact": artifact,
        "store": store,
        "version": version,
        "frozen": base.get("frozen", ""),
        "started": started,
        "ended": time.time(),
    }


def advance(
    place: Place,
    work: ServerWork,
    base: dict[str, Any],
    weights: Sequence[float],
    version: int,
    rule: ServerRuleSpec | None,
    *terms: dict[str, Any],
) -> dict[str, Any]:
    """The next global model as an affine combination of updates and earlier models, and a step of a server rule.

    Args:
        place: the server and the round.
        work: what stays the same over a campaign.
        base: the result that carries the model before, with the state of the rule if it has one.
        weights: sum to one; single ones may be negative.
        version: number of the model that comes out.
        rule: optimiser at the server, or None.
        terms: results that carry updates (stage-in) and models (of this task or ``prepare``), as ``weights``.

    Raises:
        ArtifactError: a file is not whole, or does not fit the others.
        UserMistake: the campaign's adapter method has no combination of models.
    """
    import torch

    started = time.time()
    store, adapter = work["store"], work["model"]["adapter"]
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        require_linear(adapter["method"] if adapter else None)
        torch.set_num_threads(work["threads"])
        files = [(verify(store, term["artifact"]), float(w)) for term, w in zip(terms, weights, strict=True)]
        before, kind = verify(store, base["artifact"]), "adapter" if adapter else "model"
        state = None
        if rule is None:
            artifact = affine_combination(files, before, store, kind)
        else:
            earlier = verify(store, base["state"]) if base.get("state") else None
            artifact, state = optimizer_step(files, before, earlier, rule, store, kind)
    return {
        "artifact": artifact,
        "state": state,
        "store": store,
        "version": version,
        "frozen": base.get("frozen", ""),
        "started": started,
        "ended": time.time(),
    }


def require_linear(method: str | None) -> None:
    """Raises UserMistake for an adapter method whose server rule is no sum of tensors."""
    if method not in (None, *LINEAR_METHODS):
        raise UserMistake(
            f"model.adapter.method: {method} has no sum of earlier models, which this strategy needs",
            remedy=f"Use {' or '.join(LINEAR_METHODS)}, or the strategy fedavg",
        )


def save_model(place: Place, work: ServerWork, final: dict[str, Any], folder: str) -> dict[str, Any]:
    """Write the final model as ``from_pretrained`` loads it; the folder appears whole or not at all."""
    import torch

    started = time.time()
    target = Path(folder)
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        model = load_model(work["model"])
        set_state(model, verify(work["store"], final["artifact"]))
        _replace_folder(target, lambda unfinished: save_for_users(model, unfinished))
    return {"artifact": final["artifact"], "folder": str(target), "started": started, "ended": time.time()}


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then put it there: what stands there is whole at every instant.

    Raises:
        StorageError: it cannot be written; what stood there before still does.
    """
    from safetensors import SafetensorError

    unfinished, old = target.with_name(target.name + ".part"), target.with_name(target.name + ".old")
    try:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write(unfinished)
        if target.exists():
            os.replace(target, old)
        os.replace(unfinished, target)
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error) from error
    finally:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)

"""Parsl app of the server: the next global model from updates, and from earlier models where a strategy wants them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.artifacts.lora import aggregate_adapters
from apps.artifacts.server_optimizer import ServerRuleSpec, optimizer_step
from apps.artifacts.store import Artifact, verify
from apps.artifacts.traffic import model_terms, rounded_copy
from apps.artifacts.weighted_sum import Term, affine_combination, weighted_sum
from apps.base.errors import UserMistake, placed
from apps.base.identity import Place
from apps.base.versions import require_same_code
from apps.models.model import sends_bfloat16
from apps.server import ServerWork

LINEAR_METHODS = ("fedit", "ffa")  # adapter methods that sum tensor by tensor


def aggregate(
    place: Place,
    work: ServerWork,
    base: dict[str, Any],
    weights: Sequence[float],
    version: int,
    rule: ServerRuleSpec | None,
    *terms: dict[str, Any],
) -> dict[str, Any]:
    """Make the next global model: a weighted sum of updates and earlier models, then a step of a server optimizer.

    Without a rule and without earlier models it is the mean of the updates, by the campaign's adapter method.

    Args:
        place: the server and the round.
        work: what stays the same for the server over a campaign.
        base: the result that carries the model before, with the state of the rule if it has one.
        weights: of ``terms``; sum to one, single ones may be negative.
        version: number of the new model; with the campaign's seed it seeds adapters that restart.
        rule: optimizer at the server, or None.
        terms: stage-in results (updates), and results of this app or of ``prepare`` (models).

    Returns:
        The new ``artifact``, ``sent``: the copy of it that travels (None: itself), ``state`` of the rule (None without
        one), ``store``, ``version``, ``frozen`` fingerprint of the base weights, ``started`` and ``ended`` (UNIX
        seconds).

    Raises:
        ArtifactError: a file is incomplete, altered, or does not fit the others.
        UserMistake: the campaign's adapter method cannot sum earlier models.
    """
    import torch

    started, state = time.time(), None
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        weighted = [(term, float(weight)) for term, weight in zip(terms, weights, strict=True)]
        before = verify(work["store"], base["artifact"])
        if rule is None and all(term["artifact"]["kind"] == "update" for term in terms):
            files = [(verify(work["store"], term["artifact"]), weight) for term, weight in weighted]
            artifact = _mean(work, files, before, version)
        else:
            artifact, state = _combination(work, model_terms(work["store"], weighted), before, base, rule)
        sent = rounded_copy(work["store"], artifact) if sends_bfloat16(work["model"]) else None
    return {
        "artifact": artifact,
        "sent": sent,
        "state": state,
        "store": work["store"],
        "version": version,
        "frozen": base.get("frozen", ""),
        "started": started,
        "ended": time.time(),
    }


def _mean(work: ServerWork, updates: Sequence[Term], before: Path, version: int) -> Artifact:
    adapter = work["model"]["adapter"]
    if adapter is None:
        return weighted_sum(updates, work["store"])
    return aggregate_adapters(updates, before, adapter["method"], work["store"], work["model"]["seed"] + version)


def _combination(
    work: ServerWork, files: Sequence[Term], before: Path, base: dict[str, Any], rule: ServerRuleSpec | None
) -> tuple[Artifact, Artifact | None]:
    store, adapter = work["store"], work["model"]["adapter"]
    require_linear(adapter["method"] if adapter else None)
    kind = "adapter" if adapter else "model"
    if rule is None:
        return affine_combination(files, before, store, kind), None
    state = verify(store, base["state"]) if base.get("state") else None
    return optimizer_step(files, before, state, rule, store, kind)


def require_linear(method: str | None) -> None:
    """Refuse an adapter method whose server rule is no sum of tensors.

    Raises:
        UserMistake: names the methods that fit.
    """
    if method not in (None, *LINEAR_METHODS):
        raise UserMistake(
            f"model.adapter.method: {method} has no sum of earlier models, which this strategy needs",
            remedy=f"Use {' or '.join(LINEAR_METHODS)}, or the strategy fedavg",
        )

"""Parsl app of the server: the next global model from updates, and from earlier models where a strategy wants them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from apps.artifacts.lora import aggregate_adapters
from apps.artifacts.robust import COORDINATE_RULES, RobustSpec, by_site, coefficients, coordinatewise, gram_matrix
from apps.artifacts.server_optimizer import ServerRuleSpec, optimizer_step
from apps.artifacts.store import Artifact, artifact_path, verify
from apps.artifacts.traffic import is_delta, model_terms, rounded_copy
from apps.artifacts.weighted_sum import Term, affine_combination, weighted_sum
from apps.base.errors import ModelNotFinite, UserMistake, placed
from apps.base.identity import Place
from apps.base.versions import require_same_code
from apps.models.model import sends_bfloat16
from apps.server import ServerWork
from data.files import UNFINISHED

LINEAR_METHODS = ("fedit", "ffa")  # adapter methods that sum tensor by tensor
OUTSTANDING = 10.0  # times the median norm: such an update is named as the cause of a model that is not finite
WeightedResult = tuple[dict[str, Any], float]  # of a task, and its weight


def aggregate(
    place: Place,
    work: ServerWork,
    base: dict[str, Any],
    weights: Sequence[float],
    version: int,
    rule: ServerRuleSpec | None,
    *terms: dict[str, Any],
    clips: Sequence[float] = (),
    robust: RobustSpec | None = None,
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
        clips: factors on the changes of the first terms, which are updates; the others count whole.
        robust: takes the place of ``weights`` and ``clips`` if all terms are updates of ``base``; see ``robust.py``.

    Returns:
        The new ``artifact``, ``sent``: the copy of it that travels (None: itself), ``state`` of the rule (None without
        one), ``store``, ``version``, ``frozen`` fingerprint of the base weights, ``coefficients`` of the sites if a
        robust rule chose them, ``started`` and ``ended`` (UNIX seconds).

    Raises:
        ArtifactError: a file is incomplete, altered, or does not fit the others.
        ModelNotFinite: the model, its copy or the state would have values that are not finite; the sites whose updates
            stand out are named.
        UserMistake: the campaign's adapter method cannot sum earlier models.
    """
    import torch

    started, state, chosen = time.time(), None, dict[str, float]()
    with placed(**place):
        require_same_code(work["code_version"], place["site"])
        torch.set_num_threads(work["threads"])
        weighted = [(term, float(weight)) for term, weight in zip(terms, weights, strict=True)]
        before = verify(work["store"], base["artifact"])
        try:
            if robust is not None:
                artifact, state, chosen = _robust(work, terms, before, base, rule, robust)
            elif rule is None and all(term["artifact"]["kind"] == "update" for term in terms):
                artifact = _mean(work, weighted, before, version, clips)
            else:
                files = model_terms(work["store"], clipped_terms(weighted, clips))
                artifact, state = _combination(work, files, before, base, rule)
            sent = rounded_copy(work["store"], artifact) if sends_bfloat16(work["model"]) else None
        except ModelNotFinite as error:
            raise _explained(error, version, terms) from None
    return {
        "artifact": artifact,
        "sent": sent,
        "state": state,
        "store": work["store"],
        "version": version,
        "frozen": base.get("frozen", ""),
        "coefficients": chosen,
        "started": started,
        "ended": time.time(),
    }


def _mean(
    work: ServerWork, updates: Sequence[WeightedResult], before: Path, version: int, clips: Sequence[float]
) -> Artifact:
    adapter, store = work["model"]["adapter"], work["store"]
    method = adapter["method"] if adapter else None
    if clips and method in (None, *LINEAR_METHODS):
        kind = "adapter" if adapter else "model"
        return affine_combination(model_terms(store, clipped_terms(updates, clips)), before, store, kind)
    files = [(verify(store, result["artifact"]), weight) for result, weight in updates]
    if method is None:
        return weighted_sum(files, store)
    return aggregate_adapters(files, before, method, store, work["model"]["seed"] + version, clips)


def _robust(
    work: ServerWork,
    updates: Sequence[dict[str, Any]],
    before: Path,
    base: dict[str, Any],
    rule: ServerRuleSpec | None,
    spec: RobustSpec,
) -> tuple[Artifact, Artifact | None, dict[str, float]]:
    """Return the model, the state of the server rule, and the sites' coefficients if there are any."""
    store, kind = work["store"], "adapter" if work["model"]["adapter"] else "model"
    files = [verify(store, update["artifact"]) for update in updates]
    if spec["name"] not in COORDINATE_RULES:
        factors = coefficients(gram_matrix(files, before), spec)
        weighted = [(update, factor) for update, factor in zip(updates, factors, strict=True) if factor]
        model, state = _combination(work, model_terms(store, weighted), before, base, rule)
        return model, state, by_site(factors, updates)
    if rule is None:
        return coordinatewise(files, before, spec, store, kind), None, {}
    with tempfile.TemporaryDirectory(dir=store, prefix=UNFINISHED) as folder:  # in the store a file may have its name
        target = coordinatewise(files, before, spec, folder, kind)
        return *_combination(work, [(artifact_path(folder, target), 1.0)], before, base, rule), {}


def clipped_terms(terms: Sequence[WeightedResult], clips: Sequence[float]) -> list[WeightedResult]:
    """Return the terms of a sum in which updates count with a part of their change: ``w (b + c (x - b))``.

    Args:
        terms: results and weights, updates first.
        clips: c of the first terms; of the others 1.
    """
    found = list[WeightedResult]()
    for (result, weight), clip in zip_longest(terms, clips[: len(terms)], fillvalue=1.0):  # type: ignore[misc]
        found.append((result, weight * clip))
        if clip != 1.0:
            start = result["master"] if is_delta(result) else result["base"]
            found.append(({"artifact": start}, weight * (1.0 - clip)))
    return found


def _explained(error: ModelNotFinite, version: int, terms: Sequence[dict[str, Any]]) -> ModelNotFinite:
    """Return the error with the sites whose updates are the cause, as far as their norms show it."""
    norms = [(term["update_norm"], term["manifest"]["site"]) for term in terms if term.get("update_norm") is not None]
    usual = statistics.median_low(norm for norm, _ in norms) if norms else 0.0
    far = [f"{site} (norm {norm:.4g})" for norm, site in norms if norm > OUTSTANDING * usual]
    if far:
        cause = f"; the cause is the update of {', '.join(far)}, the median norm is {usual:.4g}"
    else:
        cause = f"; no update stands out, the largest norm is {max(norms)[0]:.4g}" if norms else ""
    return ModelNotFinite(
        f"model {version} would have {error.what}{cause}. Model {version - 1} is kept",
        remedy="A resume would end here again. Start a new run with checks.clip_to_median and checks.refuse_beyond, or"
        " with a lower training.learning_rate",
    )


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

"""Checks of an update before it is aggregated: names, shapes, types, finite values, base model, norm of the change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NotRequired, TypedDict

from apps.artifacts.header import shown
from apps.artifacts.lora import is_trained
from apps.artifacts.manifests import HEADER_SPARE, Manifest
from apps.artifacts.store import Artifact, Header, TensorSpec, artifact_path, header_nbytes, read_header
from apps.artifacts.streams import PieceReader, piece_ranges
from apps.artifacts.traffic import DELTA
from apps.base.errors import ArtifactError, UpdateRefused

MOST_COUNT = 1 << 20  # largest change of a value of an integer tensor in one training


class UpdateRules(TypedDict):
    """Requirements of a campaign on an update."""

    method: str  # adapter method, or "full"
    max_update_norm: float | None  # bound on the L2 norm of (update - base) over all floating tensors
    changes: NotRequired[bool]  # sites send changes in bfloat16; left out: whole tensors


def check_update(manifest: Manifest, base: Artifact, store: str | Path, rules: UpdateRules) -> float:
    """Check an update and return the L2 norm of its difference to the base model.

    Args:
        manifest: of the update.
        base: the model that the site was sent.
        store: folder of artifacts that holds both.
        rules: of the campaign.

    Raises:
        UpdateRefused: with the reason, the site and the round.
    """
    path = artifact_path(store, manifest["artifact"])
    try:
        if manifest["base"] != base["sha256"]:
            raise ArtifactError("it was not trained from the base model that was sent")
        delta = manifest["artifact"]["kind"] == DELTA
        if delta != rules.get("changes", False):
            raise ArtifactError("it is not what the campaign sends: changes of a model or whole tensors")
        wanted = _wanted(base, store, rules)
        found = read_header(path, header_nbytes(artifact_path(store, base)) + HEADER_SPARE)
        check_layout(found, wanted)
        norm = change_norm(path, found, None if delta else artifact_path(store, base), wanted)
        check_norm(norm, rules["max_update_norm"])
    except ArtifactError as error:
        raise UpdateRefused(
            f"update refused: {error.what}", site=manifest["site"], round=manifest["round"], file=path.name
        ) from None
    return norm


def _wanted(base: Artifact, store: str | Path, rules: UpdateRules) -> Header:
    """Return the tensors that an update must hold, with their types in it."""
    header = read_header(artifact_path(store, base))
    trained = {name: spec for name, spec in header.items() if is_trained(name, rules["method"])}
    return {name: spec for name, spec in trained.items() if spec.floating or not rules.get("changes", False)}


def check_layout(found: Header, wanted: Header) -> None:
    """Check that names, types and shapes are those of the trained tensors.

    Raises:
        ArtifactError: names the first difference.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise ArtifactError(f"missing tensors: {len(missing)}, the first is {shown(missing[0])}")
    if extra:
        raise ArtifactError(f"unknown tensors: {len(extra)}, the first is {shown(extra[0])}")
    for name, spec in wanted.items():
        if not spec.like(found[name]):
            raise ArtifactError(
                f"tensor {shown(name)} is {found[name].dtype}{shown(list(found[name].shape))}"
                f" instead of {spec.dtype}{list(spec.shape)}"
            )


def change_norm(path: Path, found: Header, base: Path | None, wanted: Header) -> float:
    """Return the L2 norm of (update - base) over all floating-point tensors.

    Args:
        path: of the update.
        found: header of the update.
        base: path of the base model; None: the file holds the changes themselves.
        wanted: header of the tensors to compare in the base model.

    Raises:
        ArtifactError: a value is not finite, or an integer changes by more than ``MOST_COUNT``; names the tensor.
    """
    total = 0.0
    for name, spec in found.items():
        if spec.floating:
            total += _tensor_change(name, path, spec, base, wanted[name])
        elif base:
            _check_count(name, path, spec, base, wanted[name])
    return math.sqrt(total)


def _check_count(name: str, path: Path, spec: TensorSpec, base: Path, base_spec: TensorSpec) -> None:
    """Check the change of an integer tensor: counters and indices, which no training moves far."""
    new, old = PieceReader(), PieceReader()
    for start, stop in piece_ranges(spec.numel):
        values = new.read(path, spec, start, stop).double()
        largest = float((values - old.read(base, base_spec, start, stop).double()).abs().max())
        if largest > MOST_COUNT:
            raise ArtifactError(f"integer tensor {name!r} changes by up to {largest:.4g}, more than {MOST_COUNT:,}")


def _tensor_change(name: str, path: Path, spec: TensorSpec, base: Path | None, base_spec: TensorSpec) -> float:
    import torch

    new, old, total = PieceReader(), PieceReader(), 0.0
    for start, stop in piece_ranges(spec.numel):
        value = new.read(path, spec, start, stop)
        exact = value if spec.dtype == "F64" else value.float()
        change = exact - old.read(base, base_spec, start, stop) if base else exact
        square = float(torch.dot(change, change))
        if not math.isfinite(square):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise ArtifactError(f"values that are not finite in tensor {name!r}: {bad:,}")
            square = float(change.double().square().sum())
        total += square
    return total


def check_norm(norm: float, bound: float | None) -> None:
    """Raise ArtifactError if a norm is not finite or exceeds the campaign's bound."""
    if not math.isfinite(norm):
        raise ArtifactError(f"the norm of the change is {norm}")
    if bound is not None and not norm <= bound:  # in this form a NaN is refused
        raise ArtifactError(f"the change has norm {norm:.4g}, the campaign allows {bound:.4g}")

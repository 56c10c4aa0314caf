"""Read campaign files with overrides from the command line, and report every mistake in one clear line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from apps.base.errors import UserMistake
from apps.models.sources import TINY
from data.names import did_you_mean
from workflows.planning.absolute_paths import with_absolute_paths
from workflows.planning.campaign import Campaign
from workflows.planning.overrides import apply_set, choose_sites
from workflows.planning.schema_errors import problems_of
from workflows.planning.shares import without_absent_tasks
from workflows.planning.yaml_file import read_yaml


def load_campaign(path: Path, sets: Sequence[str] = (), sites: str | None = None) -> Campaign:
    """Return a checked campaign in which the types of numbers are decided; see ``read_campaign``, ``settle_dtype``."""
    return settle_dtype(read_campaign(path, sets, sites))


def read_campaign(path: Path, sets: Sequence[str] = (), sites: str | None = None) -> Campaign:
    """Return a checked campaign with absolute paths; types of numbers that are ``auto`` stay so.

    Args:
        path: the YAML file.
        sets: ``KEY=VALUE`` with dotted keys; values are read as YAML.
        sites: ``A,B=CONFIG,C.py``: which of the campaign's sites to use, with another machine for some of them.

    Raises:
        UserMistake: names the file and the key.
    """
    raw = read_yaml(path)
    known = set(raw.get("sites") or {})
    for text in sets:
        apply_set(raw, text)
    if sites:
        chosen = choose_sites(raw.get("sites") or {}, sites)
        _refuse_unknown(set(raw.get("sites") or {}) - known, known)
        raw["sites"] = without_absent_tasks(check_campaign(raw, path), chosen)
    return with_absolute_paths(check_campaign(raw, path))


def settle_dtype(campaign: Campaign) -> Campaign:
    """Replace ``auto`` in ``model.dtype`` and ``training.precision`` by what suits the campaign, the same on all hosts.

    With an adapter the base is frozen: bfloat16 loses nothing, and adapters are float32. Where all parameters are
    trained, weights are float32, since a step at a usual learning rate is smaller than half of a bfloat16 weight's last
    place; the forward and backward pass compute in bfloat16. The model from scratch is small and stays in float32.
    """
    model, training = campaign.model, campaign.training
    pretrained, frozen = model.source != TINY, model.adapter is not None
    dtype: Any = model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if pretrained and frozen else "float32"
    precision: Any = training.precision
    if precision == "auto":
        precision = "bf16" if model.dtype == "auto" and pretrained and not frozen else "no"
    return campaign.model_copy(
        update={
            "model": model.model_copy(update={"dtype": dtype}),
            "training": training.model_copy(update={"precision": precision}),
        }
    )


def _refuse_unknown(unknown: set[str], known: set[str]) -> None:
    """Raise UserMistake for a setting of a site that is neither in the campaign nor chosen: it would have no effect."""
    for name in sorted(unknown):
        raise UserMistake(f"--set sites.{name}: there is no such site{did_you_mean(name, sorted(known))}")


def check_campaign(raw: dict[str, Any], path: Path) -> Campaign:
    """Return the campaign of these keys.

    Raises:
        UserMistake: some do not fit the schema; a line for each names the file and the key.
    """
    try:
        return Campaign.model_validate(raw)
    except ValidationError as error:
        raise UserMistake("\n".join(f"{path}: {problem}" for problem in problems_of(error))) from None


def as_plain(campaign: Campaign) -> dict[str, Any]:
    """Return the campaign with all defaults, as plain values."""
    return campaign.model_dump(mode="json")


def as_yaml(campaign: Campaign) -> str:
    """Return the campaign with all defaults, as the text of a campaign file."""
    return yaml.safe_dump(as_plain(campaign), sort_keys=False, allow_unicode=True)


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (old value, new value) for all values that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b, place = old.get(key), new.get(key), f"{at}.{key}" if at else key
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, place)
        elif a != b:
            found[place] = (a, b)
    return found

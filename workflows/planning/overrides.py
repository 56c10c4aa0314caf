"""Overrides of campaign keys from the command line: ``--set`` and ``--sites``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apps.base.errors import UserMistake
from site_configs.library.resolve import available, takes
from workflows.planning.yaml_file import read_value
from workflows.strategies import SECTIONS


def apply_set(raw: dict[str, Any], text: str) -> None:
    """Set one ``KEY=VALUE`` of the command line in the keys of a campaign file.

    Settings that only the strategy or machine before knew are removed if it is replaced.

    Raises:
        UserMistake: the text or its value cannot be read, or the key lies below a value.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserMistake(f"--set {text}: write KEY=VALUE, for example --set training.steps=10")
    *folders, last = key.split(".")
    place = raw
    for folder in folders:
        if place.get(folder) is None:
            place[folder] = {}
        place = place[folder]
        if not isinstance(place, dict):
            raise UserMistake(f"--set {text}: {folder} holds a value, not keys")
    before = place.get(last)
    try:
        place[last] = read_value(last, value)
    except yaml.YAMLError:
        raise UserMistake(f"--set {text}: the value is not valid YAML") from None
    if key == "strategy.name":
        _keep_settings_of_strategy(place)
    if folders[:1] == ["sites"] and len(folders) == 2 and last == "config":
        _keep_settings_of_machine(place, before or folders[1])


def _keep_settings_of_strategy(strategy: dict[str, Any]) -> None:
    """Remove the settings that the named strategy does not have."""
    section = SECTIONS.get(strategy["name"]) if isinstance(strategy["name"], str) else None
    for key in [key for key in strategy if section and key not in section.model_fields]:
        del strategy[key]


def _keep_settings_of_machine(entry: dict[str, Any], before: str) -> None:
    """Remove the settings that the machine before has and the new one does not."""
    if {before, entry["config"]} <= set(available()):
        for key in [key for key in entry if takes(before, key) and not takes(entry["config"], key)]:
            del entry[key]


def choose_sites(known: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the site entries of ``--sites``.

    Args:
        known: the campaign's entries.
        text: of names of the campaign, ``NAME=CONFIG``, or machines that the campaign does not name.

    Raises:
        UserMistake: there is none.
    """
    chosen: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, config = item.partition("=")
        if not config and name.endswith(".py"):
            name, config = Path(name).stem, name
        entry = dict(known.get(name) or {})
        if config or name not in known:
            entry["config"] = config or name
        chosen[name] = entry
    if not chosen:
        raise UserMistake("--sites: name at least one site")
    return chosen

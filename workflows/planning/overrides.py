"""Overrides of campaign keys from the command line: ``--set`` and ``--sites``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from apps.base.errors import UserMistake
from data.names import did_you_mean
from site_configs.library.resolve import available, takes
from workflows.planning.campaign import Campaign
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
    place[last] = _text(last, value) if is_text([*folders, last]) else _yaml(text, last, value)
    if key == "strategy.name":
        _keep_settings_of_strategy(place)
    if folders[:1] == ["sites"] and len(folders) == 2 and last == "config":
        _keep_settings_of_machine(place, before or folders[1])


def _yaml(text: str, key: str, value: str) -> Any:
    try:
        return read_value(key, value)
    except yaml.YAMLError:
        raise UserMistake(f"--set {text}: the value is not valid YAML") from None


def _text(key: str, value: str) -> str | None:
    """Return a value that the schema wants as text: quoted as in YAML, ``null``, or as it stands."""
    try:
        loaded = read_value(key, value)
    except yaml.YAMLError:
        return value
    return loaded if isinstance(loaded, str) or loaded is None else value


def is_text(place: Sequence[str]) -> bool:
    """Return True if the schema has text under a dotted key, so that a value such as ``Q: {input}`` is no mapping."""
    section: Any = Campaign
    for key in place[:-1]:
        field = section.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if section is None:
            return False
    field = section.model_fields.get(place[-1])
    return bool(field) and field.annotation in (str, str | None)


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
        text: names of the campaign, or ``NAME=CONFIG`` to put another machine under one of them.

    Raises:
        UserMistake: there is none, one is not in the campaign, or one is named twice or without its machine.
    """
    chosen: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, config = (part.strip() for part in item.partition("="))
        if name not in known:
            raise UserMistake(
                f"--sites {item}: the campaign has no site {name!r}{did_you_mean(name, list(known))}",
                remedy=f"Its sites are {', '.join(known)}; to use another machine for one of them: NAME=CONFIG",
            )
        if name in chosen:
            raise UserMistake(f"--sites: {name} is named twice")
        if equals and not config:
            raise UserMistake(f"--sites {item}: name the machine after =, for example {name}=local")
        chosen[name] = dict(known[name] or {}) | ({"config": config} if config else {})
    if not chosen:
        raise UserMistake("--sites: name at least one site")
    return chosen

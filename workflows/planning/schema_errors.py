"""Messages about keys and values that do not fit the schema of a campaign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from data.names import did_you_mean
from workflows.planning.campaign import Campaign, SiteEntry
from workflows.strategies import SECTIONS
from workflows.strategies.base import StrategySection


def problems_of(error: ValidationError) -> list[str]:
    """Return a line for each error, the unknown keys first: an unknown key explains a missing one."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return list(dict.fromkeys(_problem(e) for e in errors))


def _problem(error: Any) -> str:
    place = [str(p) for p in error["loc"] if not str(p).startswith("function-")]
    if error["type"] == "union_tag_invalid":
        name = error["ctx"]["tag"]
        return f"strategy.name: there is no strategy {name!r}{did_you_mean(name, SECTIONS)}"
    known = _keys_at(Campaign, place[:-1]) if error["type"] == "extra_forbidden" else []
    if place[:1] == ["strategy"]:
        del place[1:2]  # the name of the strategy, by which its keys were chosen
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(place[-1], known)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "model_type":
        keys = ", ".join(list(_keys_at(Campaign, place))[:4])
        return f"{key}: a section with keys ({keys}, ...), got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ")
    if not place:
        return message
    given = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def _keys_at(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """Return the keys that the schema has at a place; the part after ``strategy`` is the name of one."""
    for part in place:
        if issubclass(model, StrategySection) and part in SECTIONS:
            model = SECTIONS[part]
            continue
        found = model.model_fields.get(part)
        inner = list(_types_in(found.annotation)) if found else []
        if not inner:
            return list(SiteEntry.model_fields)
        model = inner[0]
    return list(model.model_fields)


def _types_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)

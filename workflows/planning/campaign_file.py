"""Reading campaign files: one clear line for every mistake, overrides from the command line, differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from apps.base.errors import UserMistake
from apps.models.sources import TINY
from data.names import did_you_mean
from site_configs.library.resolve import available, takes
from workflows.planning.campaign import Campaign, SiteEntry
from workflows.strategies import SECTIONS
from workflows.strategies.base import StrategySection

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Loader(yaml.SafeLoader):
    """YAML 1.1 without its numbers to the base of sixty: ``2:30`` is a text, not 150; and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is set twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in NUMBERS]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9][0-9_]*\.?[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def load_campaign(path: Path, sets: Sequence[str] = (), sites: str | None = None) -> Campaign:
    """Return a checked campaign in which ``model.dtype: auto`` is decided for this host; see ``read_campaign``."""
    return settle_dtype(read_campaign(path, sets, sites))


def read_campaign(path: Path, sets: Sequence[str] = (), sites: str | None = None) -> Campaign:
    """Return a checked campaign as it is written.

    Args:
        path: the YAML file.
        sets: ``KEY=VALUE`` with dotted keys; values are read as YAML.
        sites: ``A,B=CONFIG,C.py``: a choice of the campaign's sites, with other machines under them if wanted.

    Raises:
        UserMistake: names the file and the key.
    """
    raw = read_yaml(path)
    known = set(raw.get("sites") or {})
    for text in sets:
        apply_set(raw, text)
    if sites:
        chosen = choose_sites(raw.get("sites") or {}, sites)
        _refuse_unknown(set(raw.get("sites") or {}) - known - set(chosen), known | set(chosen))
        raw["sites"] = chosen
    return check_campaign(raw, path)


def settle_dtype(campaign: Campaign) -> Campaign:
    """The campaign with ``model.dtype: auto`` decided: bfloat16 where this processor computes in it, else float32."""
    if campaign.model.dtype != "auto":
        return campaign
    dtype = "bfloat16" if campaign.model.source != TINY and _computes_bfloat16() else "float32"
    return campaign.model_copy(update={"model": campaign.model.model_copy(update={"dtype": dtype})})


def _computes_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _refuse_unknown(unknown: set[str], known: set[str]) -> None:
    """A setting for a site that is neither in the campaign nor chosen would be lost without a word."""
    for name in sorted(unknown):
        raise UserMistake(f"--set sites.{name}: there is no such site{did_you_mean(name, sorted(known))}")


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(), Loader)
    except FileNotFoundError:
        raise UserMistake(f"there is no campaign file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserMistake(f"{path}:{line} not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise UserMistake(f"{path}: a campaign is a mapping of keys: name, rounds, model, training, sites, ...")
    return raw


def apply_set(raw: dict[str, Any], text: str) -> None:
    """Carry out one ``KEY=VALUE`` of the command line."""
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
        place[last] = yaml.load(value, Loader)
    except yaml.YAMLError:
        raise UserMistake(f"--set {text}: the value is not valid YAML") from None
    if key == "strategy.name":
        _keep_what_it_knows(place)
    if folders[:1] == ["sites"] and len(folders) == 2 and last == "config":
        _keep_what_it_takes(place, before or folders[1])


def _keep_what_it_knows(strategy: dict[str, Any]) -> None:
    """Settings of the strategy that stood there before mean nothing to another one."""
    section = SECTIONS.get(strategy["name"]) if isinstance(strategy["name"], str) else None
    for key in [key for key in strategy if section and key not in section.model_fields]:
        del strategy[key]


def _keep_what_it_takes(entry: dict[str, Any], before: str) -> None:
    """Settings of the machine that stood there before mean nothing to one that does not have them."""
    if {before, entry["config"]} <= set(available()):
        for key in [key for key in entry if takes(before, key) and not takes(entry["config"], key)]:
            del entry[key]


def choose_sites(known: dict[str, Any], text: str) -> dict[str, Any]:
    """The sites of ``--sites``: names of the campaign, ``NAME=CONFIG``, or machines that the campaign does not name."""
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


def check_campaign(raw: dict[str, Any], path: Path) -> Campaign:
    try:
        return Campaign.model_validate(raw)
    except ValidationError as error:
        raise UserMistake(f"{path}: {_first_line(error)}") from None


def _first_line(error: ValidationError) -> str:
    """The most helpful of the errors in one line: an unknown key explains a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place = [str(p) for p in first["loc"] if not str(p).startswith("function-")]
    if first["type"] == "union_tag_invalid":
        name = first["ctx"]["tag"]
        return f"strategy.name: there is no strategy {name!r}{did_you_mean(name, SECTIONS)}"
    known = _keys_at(Campaign, place[:-1]) if first["type"] == "extra_forbidden" else []
    if place[:1] == ["strategy"]:
        del place[1:2]  # the name of the strategy, by which its keys were chosen
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: unknown key{did_you_mean(place[-1], known)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{'.'.join(place)}: missing"
    if not place:
        return message
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return f"{'.'.join(place)}: {message[0].lower()}{message[1:]}{given}"


def _keys_at(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """The keys that the schema knows at a place; below ``strategy`` its first part is the name of one."""
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


def as_plain(campaign: Campaign) -> dict[str, Any]:
    """The campaign with all defaults, as plain values."""
    return campaign.model_dump(mode="json")


def as_yaml(campaign: Campaign) -> str:
    return yaml.safe_dump(as_plain(campaign), sort_keys=False, allow_unicode=True)


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) for all values that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        a, b, place = old.get(key), new.get(key), f"{at}.{key}" if at else key
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, place)
        elif a != b:
            found[place] = (a, b)
    return found

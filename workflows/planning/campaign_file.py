"""Read campaign files with overrides from the command line, and report every mistake in one clear line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from apps.base.errors import UserMistake
from apps.models.sources import TINY
from site_configs.library.resolve import available, takes
from workflows.planning.campaign import Campaign, SiteEntry
from workflows.strategies import SECTIONS
from workflows.strategies.base import StrategySection

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Loader(yaml.SafeLoader):
    """YAML 1.1 without numbers in base sixty (``2:30`` is a text, not 150) and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; raise ConstructorError if a key is set twice."""
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
    """Return a checked campaign, with ``model.dtype`` as it is written.

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
        _refuse_unknown(set(raw.get("sites") or {}) - known - set(chosen), known | set(chosen))
        raw["sites"] = chosen
    return check_campaign(raw, path)


def settle_dtype(campaign: Campaign) -> Campaign:
    """Replace ``model.dtype: auto`` by bfloat16 if this processor computes in it, else by float32."""
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
    """Raise UserMistake for a setting of a site that is neither in the campaign nor chosen: it would have no effect."""
    for name in sorted(unknown):
        raise UserMistake(f"--set sites.{name}: there is no such site{_closest(name, sorted(known))}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a campaign file.

    Raises:
        UserMistake: there is no such file, it is not YAML, or it is not a mapping.
    """
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
        place[last] = yaml.load(value, Loader)
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


def check_campaign(raw: dict[str, Any], path: Path) -> Campaign:
    """Return the campaign of these keys.

    Raises:
        UserMistake: one does not fit the schema; names the file and the key.
    """
    try:
        return Campaign.model_validate(raw)
    except ValidationError as error:
        raise UserMistake(f"{path}: {_first_line(error)}") from None


def _first_line(error: ValidationError) -> str:
    """Return the most helpful of the errors in one line: an unknown key explains a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place = [str(p) for p in first["loc"] if not str(p).startswith("function-")]
    if first["type"] == "union_tag_invalid":
        return f"strategy.name: there is no strategy {first['ctx']['tag']!r}{_closest(first['ctx']['tag'], list(SECTIONS))}"
    known = _keys_at(Campaign, place[:-1]) if first["type"] == "extra_forbidden" else []
    if place[:1] == ["strategy"]:
        del place[1:2]  # the name of the strategy, by which its keys were chosen
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: unknown key{_closest(place[-1], known)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{'.'.join(place)}: missing"
    if not place:
        return message
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return f"{'.'.join(place)}: {message[0].lower()}{message[1:]}{given}"


def _closest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the known name that is most similar, or all of them."""
    close = difflib.get_close_matches(name, known, 1)
    return f", did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


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

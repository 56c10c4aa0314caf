"""The policy file of a site: read strictly, from a file that only its owner may write, anew for every request.

Each key must be there, so that nothing is implied; ``any`` lifts a rule. See docs/policy.md.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import yaml

from apps.base.errors import PolicyRefused
from apps.trust.policy import ANY, METRICS, BaseModel, Policy

VERSION = 1
NAME = "crossfed-site.yaml"
POLICY_VARIABLE = "CROSSFED_SITE_POLICY"  # set by an endpoint's own template, for its workers
LARGEST_FILE = 1 << 20
ACCOUNT_POLICY = ".crossfed/site.yaml"  # below the home folder
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
DIGEST, KEY_ID = re.compile(r"\A[0-9a-f]{64}\Z"), re.compile(r"\A[0-9a-f]{16}\Z")


def account_policy() -> Path:
    """Return the place of the policy for sites that the account's own owner drives: ``~/.crossfed/site.yaml``.

    The home folder is that of the account, whatever the environment says.
    """
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ACCOUNT_POLICY


def read_policy(path: Path) -> Policy:
    """Return the policy in a file.

    Raises:
        PolicyRefused: by the rule ``policy``: the file is missing, may be written by others, or is not a policy.
    """
    try:
        text = _own_text(path)
        return _policy(yaml.load(text, StrictLoader))
    except FileNotFoundError:
        raise _refused(f"there is no policy file {path}", "Ask the operator of the site to run setup_site.py") from None
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    except ValueError as error:
        raise _refused(f"{path}: {error}") from None


def _refused(what: str, remedy: str = "Ask the operator of the site to correct it") -> PolicyRefused:
    return PolicyRefused(
        f"the site's policy: {what}", rule="policy", asked="any request", allowed="none", remedy=remedy
    )


def _own_text(path: Path) -> str:
    """Read a file after checking that only this account or root may change it.

    Raises:
        ValueError: others may write the file, or put another one in its place.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no file")
        _require_own("it", facts)
        _require_own(f"its folder {path.parent}", path.parent.stat())
        return stream.read(LARGEST_FILE).decode()


def _require_own(what: str, facts: os.stat_result) -> None:
    if facts.st_uid not in (0, os.getuid()):
        raise ValueError(f"{what} belongs to another user (id {facts.st_uid})")
    if facts.st_mode & WRITABLE and not (stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX):
        raise ValueError(f"others may write {what} (mode {stat.S_IMODE(facts.st_mode):04o}): chmod go-w")


class StrictLoader(yaml.SafeLoader):
    """YAML without repeated keys, aliases and tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; raise ComposerError for an alias or a tag."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "aliases and tags are not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; raise ConstructorError if a key is set twice."""
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(map(str, keys))):
            raise yaml.constructor.ConstructorError(None, None, "a key is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


Reader = Callable[[Any], Any]


def _policy(values: Any) -> Policy:
    if not isinstance(values, dict) or values.get("policy") != VERSION:
        raise ValueError(f"it does not begin with policy: {VERSION}")
    unknown = sorted(str(key) for key in values if key != "policy" and key not in READERS)
    missing = [key for key in READERS if key not in values]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}")
    if missing:
        raise ValueError(f"the key {missing[0]} is missing; 'any' lifts a rule")
    return _consistent(Policy(**{key: _read(key, reader, values[key]) for key, reader in READERS.items()}))


def _read(key: str, reader: Reader, value: Any) -> Any:
    if value == "any" and key not in NEVER_ANY:
        return ANY
    try:
        return reader(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from None


def _consistent(policy: Policy) -> Policy:
    """Check that nothing private lies in the folder that drivers reach."""
    shared = policy.exchange
    for key, path in (
        ("root", policy.root),
        ("python", policy.python),
        *(("data", path) for path in policy.data or ()),
    ):
        if shared and path and path.startswith("/") and overlap(path, shared):
            raise ValueError(f"{key}: {path} and the exchange folder {shared}, which drivers reach, overlap")
    return policy


def overlap(one: str, other: str) -> bool:
    """Return True if one of two folders lies in the other, with all links followed."""
    first, second = (Path(os.path.realpath(path)) for path in (one, other))
    return first.is_relative_to(second) or second.is_relative_to(first)


def _path(value: Any) -> str:
    if not isinstance(value, str) or not Path(value).is_absolute() or os.path.normpath(value) != value:
        raise ValueError(f"{value!r} is no whole path without '..'")
    return value


def _exchange(value: Any) -> str | None:
    return None if value == "none" else _path(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def _texts(value: Any, read: Callable[[Any], str] = _text) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return tuple(read(entry) for entry in value)


def _digests(pattern: re.Pattern[str]) -> Reader:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise ValueError(f"{value!r} is not like {pattern.pattern}; put it in quotes")
        return value

    return lambda value: _texts(value, read)


def _source(value: Any) -> str:
    return _path(value) if isinstance(value, str) and value.startswith("/") else _text(value)


def _models(value: Any) -> tuple[BaseModel, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return tuple(_model(entry) for entry in value)


def _model(entry: Any) -> BaseModel:
    if not isinstance(entry, dict):
        return BaseModel(_source(entry))
    if "source" not in entry or not set(entry) <= {"source", "fingerprint"}:
        raise ValueError("an entry has source and fingerprint")
    fingerprint = entry.get("fingerprint", "any")
    if fingerprint == "any":
        return BaseModel(_source(entry["source"]))
    return BaseModel(_source(entry["source"]), _digests(DIGEST)([fingerprint])[0])


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _hours(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is no number of hours")
    return float(value)


def _metrics(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    if not set(names) <= set(METRICS):
        raise ValueError(f"{value!r}: known are {', '.join(METRICS)}")
    return names


def _moment(value: Any) -> float:
    """Return the UNIX time of the end of a day, or of a moment; both in UTC unless the moment says otherwise."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime.combine(value, time.max, UTC).timestamp()
    raise ValueError(f"{value!r} is no date such as 2027-06-30")


NEVER_ANY = ("root", "exchange")
READERS: dict[str, Reader] = {
    "python": _path,
    "root": _path,
    "exchange": _exchange,
    "data": lambda value: _texts(value, _source),
    "models": _models,
    "learning_files": _digests(DIGEST),
    "launch": _texts,
    "device": _text,
    "max_model_bytes": _count,
    "max_update_bytes": _count,
    "max_steps_per_request": _count,
    "max_steps": _count,
    "max_rounds": _count,
    "max_node_hours": _hours,
    "metrics": _metrics,
    "methods": _texts,
    "campaigns": _texts,
    "drivers": _digests(KEY_ID),
    "not_after": _moment,
}

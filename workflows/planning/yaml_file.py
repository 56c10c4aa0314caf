"""The YAML of campaign files: the safe loader without two traps of YAML 1.1."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from apps.base.errors import UserMistake

# Names that facilities give: a number in one of these places is a text, with its zeros
TEXT_KEYS = ("account", "queue", "partition", "qos", "reservation", "constraint")
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
        for key, value in node.value:
            _keep_text(getattr(key, "value", ""), value)
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


def read_value(key: str, text: str) -> Any:
    """Return the value that a text has under a key of a campaign file.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    node = yaml.compose(text, Loader)
    _keep_text(key, node)
    return None if node is None else Loader("").construct_document(node)


def _keep_text(key: object, node: yaml.Node | None) -> None:
    """Make a scalar a text where a name is meant; nothing else in YAML keeps the zeros of ``0123``."""
    if key in TEXT_KEYS and isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        node.tag = "tag:yaml.org,2002:str"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a campaign file.

    Raises:
        UserMistake: there is no such file, it is not YAML, or it is not a mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
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

"""Canonical JSON: equal values give equal bytes, so that they can be hashed and signed.

UTF-8 in NFC, keys sorted by code point, no spaces, integers below 2^53. Numbers with a fraction have no agreed text in
JSON, so they are no part of it: ``plain_text`` writes them as text before, in the shortest form that gives them back.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn

LARGEST = 2**53 - 1  # the largest integer that every reader of JSON keeps exactly
DEEPEST = 32  # levels of lists and objects


def canonical(value: Any) -> bytes:
    """Return a value as canonical JSON.

    Raises:
        ValueError: it has something that canonical JSON does not: a float, a large integer, text that is not NFC.
    """
    _require_canonical(value, 0)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _require_canonical(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    match value:
        case None | bool():
            pass
        case int() if abs(value) <= LARGEST:
            pass
        case str() if unicodedata.is_normalized("NFC", value):
            pass
        case list() | tuple():
            for item in value:
                _require_canonical(item, depth + 1)
        case dict() if all(isinstance(key, str) for key in value):
            for key, item in value.items():
                _require_canonical(key, depth)
                _require_canonical(item, depth + 1)
        case _:
            raise ValueError(f"{type(value).__name__} without a canonical form: {_shown(value)}")


def _shown(value: Any) -> str:
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else ascii(value)[:80]


def read_canonical(content: bytes) -> Any:
    """Parse canonical JSON.

    Raises:
        ValueError: it is not the canonical form of what it says.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_without_repetition,
            parse_constant=_refuse_number,
            parse_float=_refuse_number,
            parse_int=_small_integer,
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    if canonical(value) != content:
        raise ValueError("not in canonical form")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is there twice")
    return values


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no integer")


def _small_integer(text: str) -> int:
    if len(text) > len(str(-LARGEST)):
        raise ValueError(f"integer of {len(text)} digits")
    return int(text)


def plain_text(value: Any) -> Any:
    """Return a value with its floats as text, texts in NFC, tuples as lists, and integers beyond 2^53 as text.

    The text of a float is Python's shortest one that gives it back: ``0.1``, ``1e+16``, ``nan``.
    """
    match value:
        case bool() | None:
            return value
        case float():
            return repr(value)
        case int():
            return value if abs(value) <= LARGEST else str(value)
        case str():
            return unicodedata.normalize("NFC", value)
        case Mapping():
            return {unicodedata.normalize("NFC", str(key)): plain_text(item) for key, item in value.items()}
        case list() | tuple():
            return [plain_text(item) for item in value]
        case _:
            raise ValueError(f"{type(value).__name__} is no plain value")


def is_same(said: Any, value: Any) -> bool:
    """Return whether a signed value, in which floats are text, says the same as a plain one."""
    match value:
        case float():
            return isinstance(said, str | int) and not isinstance(said, bool) and _is_number(said, value)
        case Mapping():
            keys = isinstance(said, dict) and said.keys() == value.keys()
            return keys and all(is_same(said[key], item) for key, item in value.items())
        case list() | tuple():
            return isinstance(said, list) and len(said) == len(value) and all(map(is_same, said, value))
        case _:
            plain = plain_text(value)
            return type(said) is type(plain) and bool(said == plain)


def _is_number(said: str | int, value: float) -> bool:
    try:
        number = float(said)
    except (ValueError, OverflowError):
        return False
    return number == value or (math.isnan(number) and math.isnan(value))

"""Text without what a terminal obeys: words of others are shown, and must not move the cursor or set the clipboard."""

from __future__ import annotations

import re
from typing import Any

# C0, DEL and C1 with their escape sequences' first byte, the marks that turn the direction of writing or end a line
# (Unicode Standard Annex #9, and Zl and Zp), and halves of a surrogate pair, which cannot be encoded
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SPACES = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")


def one_line(text: str) -> str:
    """Return a text as one line without control characters: white space is a space, the others are left out."""
    return CONTROLS.sub("", SPACES.sub(" ", text))


def without_controls(text: str) -> str:
    """Return a text without control characters; its tabs and ends of lines stay."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in "\t\n" else "", text)


def plain_value(value: Any) -> Any:
    """Return plain values with every text in them, names of fields too, without control characters."""
    if isinstance(value, str):
        return without_controls(value)
    if isinstance(value, dict):
        return {plain_value(key): plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = (plain_value(entry) for entry in value)
        return list(entries) if isinstance(value, list) else tuple(entries)
    return value

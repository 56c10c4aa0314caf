"""Reading files and JSON that others have written: in bounded time and memory, with errors of two kinds only.

A file may be a pipe that nobody writes to, a device without an end, or a link to something else; a text may be nested
without end, or be small and stand for millions of values.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from itertools import islice
from pathlib import Path
from typing import Any

DEEPEST = 32  # levels of lists and objects
LONGEST = 10_000_000  # characters
MOST_VALUES = 100_000  # fields and entries of one text
TEXTS = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # a JSON string; an unfinished one reaches to the end
NO_BRACKETS = re.compile(r"[^\[\]{}]++")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps half of a surrogate pair, which no UTF-8 text can hold


def open_regular(path: str, flags: int) -> int:
    """Open a regular file; an ``opener`` for ``open``. A link is followed.

    Raises:
        OSError: it is something else (EINVAL), or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", path)
    return descriptor


def open_own(path: str, flags: int) -> int:
    """Open a regular file that is no link; an ``opener`` for ``open``.

    Raises:
        OSError: it is a link (ELOOP), no regular file (EINVAL), or cannot be opened.
    """
    return open_regular(path, flags | os.O_NOFOLLOW)


def read_start(path: str | Path, limit: int, *, follow: bool = False) -> bytes:
    """Return the first bytes of a file.

    Args:
        path: of the file.
        limit: at most so many bytes are read.
        follow: a link is followed.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    with open(path, "rb", opener=open_regular if follow else open_own) as stream:
        return stream.read(limit)


def read_small(path: str | Path, limit: int, *, follow: bool = False) -> bytes:
    """Return the content of a file; for the arguments see ``read_start``.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: it is longer than ``limit``.
    """
    content = read_start(path, limit + 1, follow=follow)
    if len(content) > limit:
        raise ValueError(f"{Path(path).name} has more than {limit:,} bytes")
    return content


def read_json(path: str | Path, limit: int, *, follow: bool = False) -> Any:
    """Return what a small JSON file says; for the arguments see ``read_start``.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: it is longer than ``limit``, or ``parse_json`` refuses it.
    """
    return parse_json(read_small(path, limit, follow=follow).decode())


def parse_json(
    text: str,
    *,
    longest: int = LONGEST,
    most: int = MOST_VALUES,
    repeated: bool = False,
    halves: bool = True,
) -> Any:
    """Parse JSON that others have written.

    Args:
        text: JSON.
        longest: characters that it may have.
        most: values that it may have.
        repeated: an object may have a field twice; the last one counts, as in the public libraries.
        halves: a string may have half of a surrogate pair, as the names of files that are no text have.

    Raises:
        ValueError: it is no JSON, too long, too deep, or has a number of thousands of digits; the message has nothing
            of what it says.
    """
    if len(text) > longest:
        raise ValueError(f"it has {len(text):,} characters, at most {longest:,} are read")
    _require_bounded(text, most)
    try:
        value = json.loads(text, object_pairs_hook=None if repeated else _without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno} at character {error.pos}") from None
    if not halves and HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half of a surrogate pair, which is no text") from None
    return value


def _require_bounded(text: str, most: int) -> None:
    """Raise for a text whose values would be many or deeply nested; brackets within strings do not count."""
    outside = TEXTS.sub("", text) if text.count("[") + text.count("{") + text.count(",") > DEEPEST else ""
    depth = 0
    for bracket in islice(NO_BRACKETS.sub("", outside), 2 * most):  # one that has more has too many values
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    values = outside.count(",") + outside.count("[") + outside.count("{")
    if values > most:
        raise ValueError(f"it has about {values:,} values, at most {most:,} are read")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names the same field twice")
    return values

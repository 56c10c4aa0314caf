"""Write a table as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from apps.base.plain_text import one_line

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def csv_text(columns: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a header and rows as CSV text with Unix line ends.

    A text that a spreadsheet would take for a formula has an apostrophe before it (OWASP, "CSV Injection").
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([plain_cell(value) for value in row] for row in rows)
    return stream.getvalue()


def plain_cell(value: object) -> object:
    """Return the value of a cell that no spreadsheet executes: a formula gets an apostrophe; numbers stay."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

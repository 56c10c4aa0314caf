"""CSV files of the studies, and their tables for the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from apps.base.errors import UserMistake
from apps.base.files import write_text
from workflows.records.csv_text import plain_cell

if TYPE_CHECKING:
    from rich.table import Table

RowT = TypeVar("RowT")  # a dataclass of strings, integers and floats


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], header: bool = True) -> str:
    """Return rows as CSV; floats have six digits, NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    write_text(path, csv_text(columns, rows))


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return plain_cell(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def csv_of(kind: type[RowT], rows: Iterable[RowT], header: bool = True) -> str:
    """Return dataclass rows as CSV with a column for each field."""
    columns = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # RowT cannot be bound to dataclasses
    return csv_text(columns, ([getattr(row, name) for name in columns] for row in rows), header)


def read_rows(path: Path, kind: type[RowT], study: str) -> list[RowT]:
    """Return the rows of a file that ``csv_of`` made; none if there is no file. A cut-off last line is left out.

    Args:
        path: of the file.
        kind: dataclass of the rows.
        study: name of the study, for the error.

    Raises:
        UserMistake: the file is of another kind.
    """
    from pydantic import TypeAdapter, ValidationError

    if not path.exists():
        return []
    whole = (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    floats = {field.name for field in fields(kind) if field.type == "float"}  # type: ignore[arg-type]
    records = [
        {name: "nan" if cell == "" and name in floats else cell for name, cell in record.items()}
        for record in csv.DictReader(whole)
    ]
    try:
        return TypeAdapter(list[kind]).validate_python(records)  # type: ignore[valid-type]
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"row {problem['loc'][0]}, column {problem['loc'][-1]}"
        what = f"{path} is not a table of a {study} study: {where}: {problem['msg']}"
        raise UserMistake(what, remedy="Move it away") from None


def terminal_table(
    title: str,
    columns: Sequence[str],
    left: int,
    sections: Iterable[tuple[Sequence[str], Iterable[Sequence[str]]]],
    **options: Any,
) -> Table:
    """Return a table for the terminal.

    Args:
        title: of the table.
        columns: their names.
        left: number of columns that are aligned left; the others are aligned right.
        sections: the first cells of a section, shown in its first row only, and the other cells of its rows.
        options: of the columns, instead of ``no_wrap``.
    """
    from rich.table import Table
    from rich.text import Text

    options = options or {"no_wrap": True}
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", **options)
    for first, rows in sections:
        for number, row in enumerate(rows):
            table.add_row(*map(Text, [*(first if number == 0 else [""] * len(first)), *row]))
        table.add_section()
    return table

"""Words of others, without what a terminal or a spreadsheet obeys, wherever they are shown or written."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from apps.base.error_records import error_from
from apps.base.plain_text import one_line, plain_value, without_controls
from workflows.console.command import PlainFormatter, complain
from workflows.dataflow.activity import SiteActivity
from workflows.records.csv_text import csv_text
from workflows.records.journal import Journal, read_journal
from workflows.reporting.display import Display
from workflows.studies import tables

HOSTILE = "x\x1b]0;OWNED\x07\x1b]52;c;cm0gLXJmIH4=\x07\n\x1b[2K\rDone. \x9b2J\u202e\u2028The model is in runs/x/model"
SHOWN = "x]0;OWNED]52;c;cm0gLXJmIH4= [2K Done. 2J The model is in runs/x/model"


def controls(text: str) -> set[str]:
    return {c for c in text if not c.isprintable()} - {"\n"}


@pytest.mark.parametrize(
    ("text", "line", "lines"),
    [
        ("as it was: ÅΩ分子 🙂 don't", "as it was: ÅΩ分子 🙂 don't", "as it was: ÅΩ分子 🙂 don't"),
        ("two\n\tlines\r\n", "two lines ", "two\n\tlines\n"),
        ("\x00\x7f\x85\ud800", " ", ""),
        (HOSTILE, SHOWN, "x]0;OWNED]52;c;cm0gLXJmIH4=\n[2KDone. 2JThe model is in runs/x/model"),
    ],
)
def test_texts(text: str, line: str, lines: str) -> None:
    assert (one_line(text), without_controls(text)) == (line, lines)
    assert plain_value({text: [text, {"a": (text, 1, None, 2.5)}]}) == {lines: [lines, {"a": (lines, 1, None, 2.5)}]}


def test_the_error_of_a_site_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_from({"kind": "TaskError", "what": HOSTILE, "site": "evil", "round": 10**400, "remedy": "y" * 10**6})
    assert str(error).startswith(f"site evil: {SHOWN}. yyy") and len(str(error)) < 5000
    complain(f"driver: {HOSTILE}", 1)
    assert not controls(capsys.readouterr().err)


def test_the_journal_the_log_and_the_display_have_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("task_failed", site="evil", round=1, reason=HOSTILE, result={"host": HOSTILE})
    journal.write("campaign_opened", campaign={"data": {"prompt": "Q: {input}\x1e\nA:"}})
    failed, opened = read_journal(journal.path)
    assert not controls(failed["reason"]) and not controls(failed["result"]["host"])
    assert opened["campaign"]["data"]["prompt"] == "Q: {input}\x1e\nA:"  # the user's own

    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=False, width=400), ["evil"], 2)
    display.began = 0.0
    engine: Any = SimpleNamespace(
        run=SimpleNamespace(journal=SimpleNamespace(records=[{**failed, "reason": HOSTILE}])),
        plan=SimpleNamespace(server_blocks=(), campaign=SimpleNamespace(evaluation=SimpleNamespace(sites=(), every=1))),
        activity=lambda site: SiteActivity(HOSTILE),
        server_activity=lambda: "",
    )
    display.tick(engine)
    assert out.getvalue().count(SHOWN) == 2 and not controls(out.getvalue())

    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (HOSTILE,), None)
    assert not controls(PlainFormatter("%(message)s").format(record))


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "' =1"),
        ("-2+3", "'-2+3"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("forward_synthesis", "forward_synthesis"),
        (-3, "-3"),
        ("", '""'),
    ],
)
def test_no_cell_of_a_table_is_a_formula(cell: object, written: str) -> None:
    assert csv_text(["a"], [[cell]]) == f"a\n{written}\n"
    assert tables.csv_text(["a"], [[cell]]) == f"a\n{written}\n"


def test_a_bar_has_its_width_whatever_a_site_has_done() -> None:
    progress = json.loads('{"round": 1, "step": 1000000000000, "steps": 1, "loss": null, "tokens_per_s": 0.0}')
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=80), ["evil"], 2)
    lines = display._live_lines({"evil": SiteActivity("training", progress)}, "")
    assert max(line.cell_len for line in lines) < 80

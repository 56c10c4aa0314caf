"""What the terminal shows: rows that fit, the time left, lines for a file, and a window that gets narrower."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from workflows.dataflow.activity import SiteActivity, server_activity
from workflows.records.journal import Journal
from workflows.records.rounds import RoundReader, RoundSummary
from workflows.reporting.display import Display
from workflows.reporting.plain_lines import PlainLines
from workflows.reporting.round_rows import RoundRows, TimeLeft, elapsed_text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sites_have_columns_where_they_fit_and_a_range_where_not() -> None:
    row = RoundSummary(3, 1.25, {"north": 2.5, "south": 1.5}, 26_000_000, 13.0)
    wide, narrow = (RoundRows(["north", "south"], 8, "round", width) for width in (80, 55))
    assert wide.header().split() == ["round", "global", "loss", "north", "south", "moved", "seconds"]
    assert wide.row(row).split() == ["3/8", "1.250", "2.500", "1.500", "26", "MB", "13.0"]
    many = RoundRows([f"site-{n}" for n in range(64)], 8, "round", 60)
    assert narrow.row(row).split() == ["3/8", "1.250", "1.500", "to", "2.500", "26", "MB", "13.0"]
    assert max(len(many.header()), len(many.row(row))) <= 60


def test_a_round_that_is_not_scored_has_a_dash() -> None:
    row = RoundRows(["north"], 8, "round", 80).row(RoundSummary(3, None, {}, 0, 1.0))
    assert row.split() == ["3/8", "-", "-", "0", "B", "1.0"]


def test_the_time_left_follows_the_newest_rounds() -> None:
    clock = Clock()
    left = TimeLeft(200, "round", clock)
    left.earlier(150)
    assert left.text() == "150 of 200 rounds done, 0:00 since the start"
    for number in (151, 152):
        clock.now += 60.0
        left.complete(number)
    assert left.left_s() == 48 * 60.0
    assert left.text() == "152 of 200 rounds done, 2:00 since the start, about 48 min left"
    assert elapsed_text(3723.4) == "1:02:03"


def test_lines_for_a_file_come_when_something_changes_or_every_five_minutes() -> None:
    clock = Clock()
    lines = PlainLines(clock)
    queued = {"a": ("queued for 3 min", "queued for 3 min"), "b": ("training", "round 1: step 1 of 9")}
    assert str(lines.line(queued, "0 of 8"))[8:] == "  0 of 8  a: queued for 3 min  b: round 1: step 1 of 9"
    clock.now = 31.0
    queued["a"] = ("queued for 4 min", "queued for 4 min")
    assert lines.line(queued, "0 of 8") is None  # the same wait
    queued["a"] = ("training", "round 1: step 2 of 9")
    assert str(lines.line(queued, "0 of 8"))[8:] == "  a: round 1: step 2 of 9"
    clock.now = 32.0
    queued["a"] = ("idle", "idle")
    assert lines.line(queued, "0 of 8") is None  # at most every half minute
    clock.now = 330.0
    assert "0 of 8" in str(lines.line(queued, "0 of 8"))


def test_many_sites_are_counted() -> None:
    phases = {f"s{n}": ("training" if n else "queued", "") for n in range(64)}
    assert str(PlainLines(Clock()).line(phases, "0 of 8")).endswith("63 sites training  1 site queued")


def engine_of(journal: Journal, every: int = 1) -> Any:
    evaluation = SimpleNamespace(sites=False, every=every)
    return SimpleNamespace(
        activity=lambda site: SiteActivity("starting"),
        server_activity=lambda: "making the first model",
        run=SimpleNamespace(journal=journal),
        plan=SimpleNamespace(campaign=SimpleNamespace(evaluation=evaluation), server_blocks=[]),
    )


def run_of(path: Path, rounds: int) -> Journal:
    journal = Journal(path)
    for number in range(rounds + 1):
        if number:
            journal.write("aggregated", version=number, round=number, weights={"a": 1.0})
            journal.write("task_done", app="aggregate", round=number, site="server", result={}, started=1.0, ended=2.0)
        result = {"who": "global", "mean_loss": 3.0 - 0.01 * number}
        journal.write("task_done", app="evaluate", round=number, site="evaluator", result=result)
    return journal


def test_a_resume_shows_the_last_rounds_again(tmp_path: Path) -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=80), ["a"], 200) as display:
        display.tick(engine_of(run_of(tmp_path / "journal.jsonl", 150)))
    rows = [line.split()[0] for line in text.getvalue().splitlines() if "/200" in line]
    assert rows == ["148/200", "149/200", "150/200"]
    assert "(148 earlier rounds are in the report)" in text.getvalue()
    assert "150 of 200 rounds done" in text.getvalue()


def test_rounds_that_are_not_scored_are_shown_when_their_model_is_made(tmp_path: Path) -> None:
    records = [
        r for r in run_of(tmp_path / "j.jsonl", 4).records if r.get("app") != "evaluate" or r["round"] in (0, 2, 4)
    ]
    reader = RoundReader(False, every=2, rounds=4)
    found = [summary for record in records for summary in reader.read([record])]
    assert [(s.number, s.global_loss is None) for s in found] == [
        (0, False),
        (1, True),
        (2, False),
        (3, True),
        (4, False),
    ]


@pytest.mark.parametrize("width", [60, 200])
def test_live_lines_fit_the_window(tmp_path: Path, width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, height=30)
    sites = [f"a-rather-long-name-{n}" for n in range(64)]
    with Display(console, sites, 8) as display:
        activities = {site: SiteActivity("gathering") for site in sites}
        lines = display._live_lines(activities, "evaluating")
    assert len(lines) <= 28 and max(line.cell_len for line in lines) < width
    assert "and 39 more sites: 39 ready" in lines[-2].plain


def test_a_narrower_window_leaves_no_copies(tmp_path: Path) -> None:
    """Two lines of 90 columns take four lines of 50: two of them are erased before rich erases its two."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=50)
    display = Display(console, ["a"], 8)
    display.lines = [90, 90]
    display._settle_width()
    assert text.getvalue() == "\r\x1b[2K\x1b[1A" * 2
    assert display.lines == []


def future(done: bool) -> Any:
    return SimpleNamespace(done=lambda: done)


def test_what_the_server_does() -> None:
    made, open_ = future(True), future(False)
    assert server_activity([open_], [], [open_]) == "making the first model"
    assert server_activity([made, open_], [open_], [made]) == ""
    assert server_activity([made, open_], [made], [made]) == "aggregating"
    assert server_activity([made, made], [open_], [made, open_]) == "evaluating"

"""An update whose round has ended without it is shown at once, and in the report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from synthetic_run import batch_run

from workflows.records.event_log import EventLog
from workflows.records.journal import Journal
from workflows.records.late_updates import LateUpdate, late_updates
from workflows.reporting.display import Display
from workflows.reporting.run_record import load_run
from workflows.reporting.tables import problem_table, round_table

REASON = "its update of round 1 arrived after the round had ended; it does not count"


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": name, **fields}


def brought(site: str, number: int) -> list[dict[str, Any]]:
    """Return a training and the arrival of its update."""
    named = {"site": site, "task_id": f"{site}{number}"}
    return [
        event("task_done", app="local_train", site=site, round=number, result=named | {"tokens": 5}),
        event("strategy_event", kind="UpdateArrived", fields=named | {"task": number, "steps_done": 3}),
    ]


def made(number: int, *sites: str) -> dict[str, Any]:
    updates = [{"site": s, "order": number, "weight": 1 / len(sites), "staleness": 0, "new": True} for s in sites]
    return event("aggregated", version=number, round=number, updates=updates, weights={})


STORY = [
    *brought("alps", 1),
    made(1, "alps"),
    *brought("alps", 2),
    *brought("bora", 1),
    made(2, "alps"),
    *brought("bora", 3),
    *brought("alps", 3),
    made(3, "alps", "bora"),
]


def journal_of(strategy: str = "fedavg") -> EventLog:
    opened = event("campaign_opened", campaign={"strategy": {"name": strategy}})
    return EventLog(tuple(e | {"time": 100.0 + n} for n, e in enumerate([opened, *STORY])))


def test_only_an_update_of_a_round_that_has_its_model_is_late() -> None:
    (late,) = late_updates(journal_of())
    assert late == LateUpdate("bora", 1, 107.0)
    assert late.reason == REASON


@pytest.mark.parametrize("strategy", ["fedasync", "fedbuff"])
def test_without_rounds_no_update_is_late(strategy: str) -> None:
    assert late_updates(journal_of(strategy)) == []


def test_an_arrival_without_its_training_is_ignored() -> None:
    records = [e for e in journal_of().events if e["event"] != "task_done"]
    assert late_updates(EventLog(tuple(records))) == []


def engine(journal: Journal) -> Any:
    return SimpleNamespace(run=SimpleNamespace(journal=journal))


@pytest.mark.parametrize(("period", "lines"), [("round", [f"  ! bora: {REASON}"]), ("version", [])])
def test_the_terminal_shows_it_once_and_at_once(tmp_path: Path, period: str, lines: list[str]) -> None:
    text = io.StringIO()
    journal = Journal(tmp_path / "journal.jsonl")
    display = Display(Console(file=text, width=200), ["alps", "bora"], 3, period)
    for record in STORY:
        journal.write(**record)
        display.show_problems(engine(journal))
    assert text.getvalue().splitlines() == lines
    journal.close()


def test_a_late_update_under_an_earlier_driver_is_not_shown_again(tmp_path: Path) -> None:
    path, text = tmp_path / "journal.jsonl", io.StringIO()
    lines = [json.dumps({"seq": n + 1, "time": 100.0 + n, **e}) for n, e in enumerate(STORY[:4])]
    path.write_text("\n".join(lines) + "\n")
    journal = Journal(path)
    display = Display(Console(file=text, width=200), ["alps", "bora"], 3)
    display.show_problems(engine(journal))
    assert text.getvalue() == ""
    for record in STORY[4:]:
        journal.write(**record)
    display.show_problems(engine(journal))
    assert text.getvalue().splitlines() == [f"  ! bora: {REASON}"]
    journal.close()


def test_the_report_shows_it_among_the_problems_and_in_the_row_of_its_round(tmp_path: Path) -> None:
    run = replace(load_run(batch_run(tmp_path / "run").write()), journal=journal_of())
    problems = problem_table(run)
    assert problems is not None
    assert problems.rows == [["7 s", "1", "bora", "update too late", REASON]]
    table = round_table(run)
    used = {row[0]: row[table.columns.index("updates used")] for row in table.rows}
    assert [used[n] for n in ("1", "2", "3")] == ["1, 1 too late", "1", "2"]
    assert "tokens and bytes" in table.note
    quiet = replace(run, journal=EventLog(journal_of().events[:4]))
    assert problem_table(quiet) is None
    assert "too late" not in round_table(quiet).note

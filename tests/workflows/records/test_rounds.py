"""Rounds read from the journal, for the terminal and for metrics.csv."""

from __future__ import annotations

import csv
import io
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from workflows.dataflow.activity import SiteActivity
from workflows.records.event_log import EventLog, as_task_run, moved_nbytes, moves, task_runs
from workflows.records.journal import Journal
from workflows.records.metrics import MetricRows, MetricsFile
from workflows.records.rounds import RoundReader, RoundSummary
from workflows.records.timeline import round_lengths
from workflows.records.timeline_building import build_timeline
from workflows.reporting.display import Display
from workflows.reporting.tables import update_table


def score(journal: Journal, number: int, who: str, loss: float) -> None:
    result = {
        "who": who,
        "mean_loss": loss,
        "artifact": {"sha256": f"{who}{number}", "nbytes": 1, "kind": "model"},
        "tasks": {t: {"loss": loss + off, "samples": 2, "tokens": 9} for t, off in (("t1", -1), ("t2", 1))},
    }
    journal.write("task_done", app="evaluate", round=number, site="evaluator", result=result, started=1.0, ended=2.0)


def move(journal: Journal, app: str, number: int, nbytes: int, started: float = 10.0) -> None:
    times = {"started": started, "ended": started + 1}
    journal.write("task_done", app=app, round=number, site="a", result={"nbytes_moved": nbytes}, **times)


def summaries(records: list[dict[str, Any]], with_sites: bool, **settings: Any) -> list[RoundSummary]:
    """Return the complete rounds, read one record at a time."""
    reader = RoundReader(with_sites, **settings)
    return [summary for record in records for summary in reader.read([record])]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("task_done", app="prepare", round=0, site="evaluator", result={}, started=0.0, ended=10.0)
    score(journal, 0, "global", 3.0)
    for nbytes in (100, 50):
        move(journal, "stage_out", 1, nbytes)
        move(journal, "stage_in", 1, nbytes)
    journal.write("aggregated", version=1, round=1, weights={"a": 0.5, "b": 0.5})
    journal.write("task_done", app="aggregate", round=1, site="server", result={}, started=24.0, ended=25.0)
    score(journal, 1, "global", 2.0)
    score(journal, 1, "a", 2.5)
    return journal


def test_a_round_is_shown_once_all_its_models_are_scored(journal: Journal) -> None:
    assert [s.number for s in summaries(journal.records, with_sites=True)] == [0]
    assert [s.number for s in summaries(journal.records, with_sites=False)] == [0, 1]
    score(journal, 1, "b", 2.75)
    first, second = summaries(journal.records, with_sites=True)
    assert (first.global_loss, first.site_losses, first.nbytes, first.seconds) == (3.0, {}, 0, 0.0)
    assert (second.global_loss, second.site_losses) == (2.0, {"a": 2.5, "b": 2.75})
    assert (second.nbytes, second.seconds) == (300, 15.0)


def test_metrics_are_sorted_and_without_duplicates(journal: Journal, tmp_path: Path) -> None:
    score(journal, 1, "a", 2.5)  # scored again by a resumed driver
    table = MetricRows()
    table.read(journal.records)
    rows = table.sorted()
    models = [(0, "global"), (1, "global"), (1, "a")]
    assert [row[:3] for row in rows] == [(*m, t) for m in models for t in ("t1", "t2")]
    MetricsFile(tmp_path / "metrics.csv", journal).write()
    read = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert list(read[0])[:5] == ["round", "model", "task", "loss", "samples"] and read[0]["loss"] == "2.000000"


def test_neither_the_terminal_nor_the_report_counts_the_absence_of_a_driver() -> None:
    def done(app: str, site: str, number: int, ended: float, **result: Any) -> dict[str, Any]:
        named = {"time": ended, "event": "task_done", "app": app, "site": site, "round": number, "result": result}
        return {**named, "started": ended - 5, "ended": ended}

    records = [
        {"time": 0.0, "event": "campaign_opened"},
        {"time": 1.0, "event": "driver_started"},
        done("prepare", "server", 0, 10.0),
        done("evaluate", "evaluator", 0, 15.0, who="global", mean_loss=3.0),
        done("stage_out", "a", 1, 25.0, nbytes_moved=9),
        {"time": 60.0, "event": "driver_started"},
        done("local_train", "a", 1, 80.0),
        {"time": 81.0, "event": "aggregated", "version": 1, "round": 1, "weights": {"a": 1.0}},
        done("aggregate", "server", 1, 90.0),
        done("evaluate", "evaluator", 1, 99.0, who="global", mean_loss=2.0),
        done("stage_in", "late", 1, 120.0, nbytes_moved=9),
    ]
    shown = {row.number: row.seconds for row in summaries(records, with_sites=False)}
    assert shown == {0: 0.0, 1: 35.0}  # from 20 to 90 without a driver from 25 to 60
    assert round_lengths(build_timeline(EventLog(tuple(records)), ["a"])) == {1: 35.0}


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Two versions of a strategy without rounds; site a was fast, and its first update counts in both.

    One record is written each second, the first at 1000.
    """
    monkeypatch.setattr("workflows.records.journal.time", SimpleNamespace(time=itertools.count(1000.0).__next__))
    journal = Journal(tmp_path / "versions.jsonl")
    journal.write("campaign_opened", campaign={"strategy": {"name": "fedecho"}})
    score(journal, 0, "global", 3.0)
    for order in (1, 2):
        move(journal, "stage_in", order, 100, started=1001.0)
    first = {"site": "a", "order": 1, "weight": 1.0, "staleness": 0, "new": True}
    journal.write("aggregated", version=1, round=1, weights={"a": 1.0}, updates=[first], models={})
    journal.write("task_done", app="aggregate", round=1, site="server", result={}, started=24.0, ended=25.0)
    score(journal, 1, "global", 2.5)
    score(journal, 1, "a", 2.6)
    move(journal, "stage_out", 1, 7, started=1007.0)
    second = {"site": "b", "order": 1, "weight": 0.5, "staleness": 1, "new": True}
    again = {**first, "weight": 0.5, "staleness": 1, "new": False}
    journal.write("aggregated", version=2, round=2, weights={"a": 0.5, "b": 0.5}, updates=[again, second], models={})
    journal.write("task_done", app="aggregate", round=2, site="server", result={}, started=26.0, ended=28.0)
    score(journal, 2, "global", 2.0)
    score(journal, 2, "b", 2.75)
    return journal


def test_a_version_is_shown_with_the_sites_that_are_new_in_it(versions: Journal) -> None:
    rows = summaries(versions.records, with_sites=True)
    assert [(row.number, row.site_losses) for row in rows] == [(0, {}), (1, {"a": 2.6}), (2, {"b": 2.75})]
    assert [row.nbytes for row in rows] == [0, 200, 7]  # what has moved since the version before
    assert [row.seconds for row in rows] == [0.0, 3.0, 5.0]


def test_the_report_counts_the_bytes_of_a_version_as_the_terminal_does(versions: Journal) -> None:
    move(versions, "send", 1, 40)  # for a version that was never made
    move(versions, "fetch", 2, 2)
    versions.write("campaign_finished", rounds=2, seconds=1)
    log = EventLog(tuple(versions.records))
    nbytes = moved_nbytes(log)
    assert nbytes == {(1, False): 200, (2, True): 7, (3, True): 40, (3, False): 2}
    shown = {row.number: row.nbytes for row in summaries(versions.records, with_sites=True)}
    assert shown == {number: nbytes[number, True] + nbytes[number, False] for number in range(3)}
    assert sum(move.nbytes for move in moves(task_runs(log))) == sum(nbytes.values())
    assert {run.round for run in task_runs(log) if run.app in ("send", "fetch")} == {2}


def test_a_version_in_which_no_site_moved_has_a_length(versions: Journal) -> None:
    versions.write("aggregated", version=3, round=3, weights={"a": 1.0}, updates=[], models={})
    last = versions.write("aggregated", version=4, round=4, weights={"a": 1.0}, updates=[], models={})
    score(versions, 4, "global", 1.0)
    row = summaries(versions.records, with_sites=True)[-1]
    assert (row.number, row.nbytes, row.seconds) == (4, 0, 1.0)
    assert build_timeline(EventLog(tuple(versions.records)), ["a"]).round_ends[4] == last["time"] - 1000.0


def test_the_report_shows_each_update_and_counts_versions(versions: Journal) -> None:
    run: Any = SimpleNamespace(period="version", journal=EventLog(tuple(versions.records)))
    table = update_table(run)
    assert table is not None and [list(row) for row in table.rows] == [
        ["1", "a", "1", "0", "1.000", ""],
        ["2", "a", "1", "1", "0.500", "again"],
        ["2", "b", "1", "1", "0.500", ""],
    ]
    assert update_table(SimpleNamespace(period="round")) is None  # type: ignore[arg-type]
    timeline = build_timeline(run.journal, ["a", "b"])
    origin = versions.records[0]["time"]
    made = [r["time"] - origin for r in versions.events("aggregated")]
    assert timeline.period == "version" and list(timeline.round_ends.values()) == made


def test_the_work_of_a_site_belongs_to_the_next_version(versions: Journal) -> None:
    runs = task_runs(EventLog(tuple(versions.records)))
    assert [(run.app, run.round, run.order) for run in runs if run.site == "a"] == [
        ("stage_in", 1, 1),
        ("stage_in", 1, 2),
        ("stage_out", 2, 1),
    ]
    versions.write("campaign_finished", rounds=2, seconds=1)
    move(versions, "stage_in", 3, 1)  # after the end of the campaign
    assert task_runs(EventLog(tuple(versions.records)))[-1].round == 2


class FakeEngine:
    def __init__(self, journal: Journal) -> None:
        self.run = SimpleNamespace(journal=journal)
        evaluation = SimpleNamespace(sites=True, every=1)
        self.plan = SimpleNamespace(campaign=SimpleNamespace(evaluation=evaluation), server_blocks=[])

    def server_activity(self) -> str:
        return "evaluating"

    def activity(self, site: str) -> SiteActivity:
        progress: Any = {"round": 2, "step": 3, "steps": 6, "loss": 1.5, "tokens_per_s": 90.0}
        return SiteActivity("training", progress) if site == "a" else SiteActivity("idle")


def shown(journal: Journal, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    engine: Any = FakeEngine(journal)
    with Display(console, ["a", "b"], 8) as display:
        journal.write("update_refused", site="a", round=2, reason="site a, round 2: [3] values are not finite")
        display.tick(engine)
        display.tick(engine)
    return text.getvalue()


def test_plain_lines_without_a_terminal(journal: Journal) -> None:
    score(journal, 1, "b", 2.75)
    text = shown(journal, terminal=False)
    assert "\x1b" not in text
    assert text.count("a: round 2: step 3 of 6, loss 1.500, 90 tokens/s  b: idle, waiting for the others") == 1
    assert text.count("  ! site a, round 2: [3] values are not finite") == 1
    (row,) = [line for line in text.splitlines() if line.strip().startswith("1/8")]
    *cells, moment = row.split()
    assert cells == ["1/8", "2.000", "2.500", "2.750", "300", "B", "15.0"] and re.fullmatch(r"\d\d:\d\d:\d\d", moment)


def test_versions_are_called_versions(versions: Journal) -> None:
    text = io.StringIO()
    console, engine = Console(file=text, width=120, highlight=False), FakeEngine(versions)
    with Display(console, ["a", "b"], 8, "version") as display:
        display.tick(engine)  # type: ignore[arg-type]
    lines = text.getvalue().splitlines()
    assert lines[0].split()[:3] == ["version", "global", "loss"]
    assert lines[2].split()[:-1] == ["1/8", "2.500", "2.600", "-", "200", "B", "3.0"]
    assert "a: request 2: step 3 of 6, loss 1.500, 90 tokens/s" in text.getvalue()


def test_a_line_per_site_on_a_terminal(journal: Journal) -> None:
    text = shown(journal, terminal=True)
    assert "━━━━━╌╌╌╌╌" in text and "idle, waiting for the others" in text


def test_no_task_has_started_before_its_campaign_or_trained_for_longer() -> None:
    event = {"event": "task_done", "app": "local_train", "site": "polaris", "round": 1, "time": 1030.0}
    event |= {"submitted": 1005.0, "started": 0.0, "ended": 1029.0, "result": {"train_s": 1e9, "samples": 3}}
    task = as_task_run(event, opened=1000.0)
    assert (task.started, task.ended, task.result["train_s"], task.result["samples"]) == (1000.0, 1029.0, 30.0, 3)

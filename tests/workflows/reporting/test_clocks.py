"""Reports of runs whose hosts have different clocks: bounded pictures, whatever the times in the journal."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import OPENED, finished_run, start_run

from workflows import report
from workflows.records.event_log import EventLog, read_events, task_runs
from workflows.records.timeline_building import build_timeline
from workflows.reporting import report as report_module
from workflows.reporting.report import write_report

REPORT = Path(report.__file__)
MEMORY = 3 << 30  # bytes of address space; the picture of a day's fault took more than 14 GB
TIMES = ("time", "submitted", "started", "ended")


def moved(journal: Path, seconds: float, chosen: Callable[[dict[str, Any]], bool], *keys: str) -> None:
    """Move the times of some records, as a host with another clock would have written them."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in filter(chosen, records):
        record.update({key: record[key] + seconds for key in keys or TIMES if isinstance(record.get(key), float)})
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """A run of two drivers."""
    run = start_run(tmp_path / "run", sites=2, tasks=2)
    run.round(1)
    run.resume(600.0)
    run.round(2)
    run.finish()
    return run.write()


def first_driver(folder: Path) -> Callable[[dict[str, Any]], bool]:
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    second = [record["seq"] for record in records if record["event"] == "driver_started"][1]
    return lambda record: record["seq"] < second


def pages(folder: Path) -> str:
    """Write the report in a process with little memory; return its page."""
    done = subprocess.run(
        [sys.executable, str(REPORT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        env={"PYTHONPATH": str(REPORT.parents[1]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert sum(path.stat().st_size for path in (folder / "figures").iterdir()) < 3_000_000
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("seconds", [86_400.0, 300.0, 3e7])
def test_a_first_driver_whose_clock_was_ahead(resumed: Path, seconds: float) -> None:
    moved(resumed / "journal.jsonl", seconds, first_driver(resumed))
    text = pages(resumed)
    assert ("clock went back by" in text) == (seconds > 600) and "could not be drawn" not in text
    timeline = build_timeline(read_events(resumed / "journal.jsonl"), ["perlmutter", "polaris"])
    assert timeline.length_s < 86_400.0 * 0.5
    assert all(0 <= i.start_s <= i.end_s <= timeline.length_s for i in timeline.intervals)


def test_a_first_driver_whose_clock_was_behind_has_a_gap(resumed: Path) -> None:
    moved(resumed / "journal.jsonl", -86_400.0, first_driver(resumed))
    assert "could not be drawn" not in pages(resumed)


@pytest.mark.parametrize("seconds", [86_400.0, -86_400.0, 3.0, -3.0])
def test_a_site_with_another_clock_keeps_the_length_of_its_work(tmp_path: Path, seconds: float) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=2).write()
    log = read_events(folder / "journal.jsonl")
    at_site = lambda record: record.get("site") == "polaris" and record.get("app") == "local_train"  # noqa: E731
    moved(folder / "journal.jsonl", seconds, at_site, "started", "ended")
    other = read_events(folder / "journal.jsonl")
    for right, shown in zip(task_runs(log), task_runs(other), strict=True):
        assert shown.submitted <= shown.started <= shown.ended <= right.ended + 1e-6
        assert shown.ended - shown.started == pytest.approx(right.ended - right.started, abs=1e-3)


def test_a_clock_that_was_set_back_within_a_driver(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=3).write()
    moved(folder / "journal.jsonl", -7200.0, lambda record: record["seq"] > 20)
    times = [event["time"] for event in read_events(folder / "journal.jsonl").events]
    assert times == sorted(times)


def test_the_scheduler_of_a_site_may_have_another_clock() -> None:
    events = (
        {"time": 1000.0, "event": "campaign_opened"},
        {"time": 1010.0, "event": "block_submitted", "site": "a", "job_id": "1"},
        {"time": 1020.0, "event": "block_started", "site": "a", "job_id": "1", "started": 90_000.0, "wait_s": 5.0},
        {"time": 1100.0, "event": "campaign_finished"},
    )
    timeline = build_timeline(EventLog(events), ["a"])
    (job,) = timeline.jobs
    assert 0 <= job.submitted <= (job.started or 0.0) <= job.until <= timeline.length_s == 100.0


def test_a_picture_that_cannot_be_drawn_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("Image size of 86045865x545 pixels is too large")

    folder = finished_run(tmp_path / "run", sites=2, rounds=1).write()
    monkeypatch.setattr(report_module, "timeline_figure", broken)
    text = write_report(folder).read_text()
    assert "The picture &#39;Time&#39; could not be drawn (ValueError: Image size of 86045865x545" in text
    assert "Bytes and seconds" in text


def test_a_changed_setting_on_a_finished_run_changes_no_time(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", sites=2, rounds=2)
    before = build_timeline(EventLog(tuple(run.events)), []).length_s
    run.event("campaign_changed", run.time + 900.0, changes={"retries": [2, 3]})
    assert build_timeline(EventLog(tuple(run.events)), []).length_s == before == run.time - OPENED

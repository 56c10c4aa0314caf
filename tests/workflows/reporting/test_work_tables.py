"""The report's tables of cut samples and of the time of a round at each site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_run import SyntheticRun, finished_run

from workflows.reporting.report import write_report
from workflows.reporting.run_record import load_run
from workflows.reporting.work_tables import block_time_table, cut_table

TIMES = {"verify_s": 1.0, "load_s": 10.0, "data_s": 4.0, "save_s": 3.0, "update_s": 5.0, "train_s": 75.0}


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return finished_run(tmp_path / "run", sites=2, rounds=2)


def enrol(run: SyntheticRun, site: str, cut: dict[str, Any], **more: Any) -> None:
    run.event("enrolled", site=site, max_tokens=512, per_task={"esol": 400, "hiv": 1040}, cut=cut, **more)


def time_rounds(run: SyntheticRun, site: str, **times: float) -> None:
    """Give the trainings of a site the times of a manifest."""
    for event in run.events:
        if event.get("app") == "local_train" and event["site"] == site:
            event["result"] |= {"started": event["ended"] - 99.0, "ended": event["ended"], **TIMES, **times}


def test_cut_samples_are_shown_by_task_and_site(run: SyntheticRun) -> None:
    enrol(run, "polaris", {"esol": {"question": 1, "answer": 0}})
    enrol(run, "polaris", {"esol": {"question": 12, "answer": 3}})  # another shard later: the last counts
    enrol(run, "perlmutter", {})
    table = cut_table(load_run(run.write()))
    assert table is not None
    assert table.rows == [["polaris", "esol", "400", "12", "3"]]
    assert "(512)" in table.note


def test_without_cut_samples_there_is_no_table(run: SyntheticRun) -> None:
    enrol(run, "polaris", {})
    assert cut_table(load_run(run.write())) is None


def test_the_time_of_a_round_adds_up(run: SyntheticRun) -> None:
    time_rounds(run, "polaris")
    table = block_time_table(load_run(run.write()))
    assert table is not None
    # 100 s = 99 s and the check of the hash before: load 10 - 4, data 4, 75, 3, 5, and 7 that no part explains
    assert table.rows == [["polaris", "2", "6 s", "4 s", "75 s", "3 s", "5 s", "7 s", "100 s", "75%"]]


def test_a_training_of_several_attempts_has_no_negative_part(run: SyntheticRun) -> None:
    time_rounds(run, "polaris", train_s=500.0)
    table = block_time_table(load_run(run.write()))
    assert table is not None and table.rows[0][7:] == ["0 s", "8.63 min", "97%"]


def test_a_journal_without_these_times_has_no_table(run: SyntheticRun) -> None:
    assert block_time_table(load_run(run.write())) is None


def test_the_page_shows_both_tables(run: SyntheticRun) -> None:
    enrol(run, "polaris", {"esol": {"question": 12, "answer": 3}})
    time_rounds(run, "polaris")
    page = write_report(run.write()).read_text()
    assert "Samples that are cut" in page
    assert "Where the time of a round went" in page

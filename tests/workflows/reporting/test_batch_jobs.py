"""Batch jobs in the report: tables and sentences."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import SyntheticRun, batch_run, finished_run

from workflows.records.batch_jobs import GIVEN_BACK, LEFT_BEHIND, LOST_ENDINGS, QUEUED, RUNNING, UNRECORDED, BatchJob
from workflows.records.site_jobs import SiteJobs
from workflows.records.timeline import WAITING, Interval
from workflows.reporting.batch_jobs import (
    CAUSES,
    ENDINGS,
    block_text,
    ending_text,
    job_table,
    loss_sentence,
    queue_sentence,
    refusal_sentence,
    sum_table,
)
from workflows.reporting.captions import big_numbers, hours_text, timeline_caption
from workflows.reporting.report import write_report
from workflows.reporting.run_record import RunRecord, load_run
from workflows.reporting.run_summary import summarize
from workflows.reporting.tables import problem_table, site_table

JOB = BatchJob("north", "7", "debug", 2, 3600.0, 100.0, 400.0, 1000.0, "timeout")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    run = batch_run(tmp_path_factory.mktemp("runs") / "batch")
    run.write()
    return run


@pytest.fixture(scope="module")
def run(synthetic: SyntheticRun) -> RunRecord:
    return load_run(synthetic.directory)


def site(name: str, *jobs: BatchJob, **values: Any) -> SiteJobs:
    nothing: dict[str, Any] = {
        "queued_s": 0.0,
        "held_node_s": 0.0,
        "trained_node_s": 0.0,
        "continued": 0,
        "refusals": (),
        "failures": (),
    }
    return SiteJobs(name, jobs, **(nothing | values))


def test_every_job_has_its_row(run: RunRecord) -> None:
    table = job_table(run)
    assert [row[:2] for row in table.rows] == [[job.site, job.job_id] for job in run.jobs]
    first = table.rows[0]
    assert first == ["perlmutter", "4701", "regular", "4", "4 h", "150 s", "2 h", "33.3 min", "ran into its walltime"]
    endings = {row[1]: row[-1] for row in table.rows if row[0] == "perlmutter"}
    assert list(endings.values()) == ["ran into its walltime", "its node failed", "given back"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_sums_of_each_site(run: RunRecord) -> None:
    table = sum_table(run)
    rows = {row[0]: row[1:] for row in table.rows}
    assert set(rows) == {"perlmutter", "polaris", "aurora"}
    assert rows["perlmutter"] == ["3", "3.17 h", "10.8", "10", "93%", "2", "2", "0"]
    assert (rows["aurora"][3], rows["polaris"][3]) == ("20", "2.5")
    assert rows["polaris"][-1] == "2"
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_the_sentences_at_the_top_are_about_queue_losses_and_refusals(run: RunRecord) -> None:
    assert block_text(run) == (
        "perlmutter waited 3.17 h of 5.9 h in the queue. "
        "2 batch jobs were lost at perlmutter (1 by timeout, 1 by node failure); 2 trainings continued in another. "
        "At polaris 2 submissions were refused (the last: qsub: Job violates limits)."
    )


def test_the_page_shows_all_of_it(synthetic: SyntheticRun, run: RunRecord, tmp_path: Path) -> None:
    html = write_report(synthetic.directory, tmp_path).read_text()
    text = re.sub(r"<[^>]+>", " ", re.sub(r"base64,[^\"]*", "", html))
    assert block_text(run) in text
    assert text.index("Batch jobs by site") < text.index("given back")
    assert "52% of them training" in text
    assert (tmp_path / "figures" / "timeline.png").exists()


def test_a_campaign_without_batch_sites_does_not_mention_them(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", sites=2, rounds=1).write()
    quiet = load_run(folder)
    assert (quiet.jobs, quiet.site_jobs, block_text(quiet)) == ((), [], "")
    assert not job_table(quiet).rows and not sum_table(quiet).rows
    assert big_numbers(quiet, summarize(quiet))[-1][1] == "wall time"
    html = write_report(folder).read_text()
    assert "Batch jobs" not in html and "batch job" not in html


def test_the_numbers_at_the_top_name_the_node_hours(run: RunRecord) -> None:
    assert (
        big_numbers(run, summarize(run))[-1][1] == "wall time; 62.1 node-hours held in batch jobs, 52% of them training"
    )
    assert timeline_caption(run).endswith("The band under a site shows its batch jobs.")


@pytest.mark.parametrize(
    ("begun", "over", "last", "words"),
    [
        (5.0, 252.0, 2, "247 s at north until round 2."),
        (110.0, 190.0, 1, "80 s at north in round 1."),
        (5.0, 90.0, 0, "85 s at north before the first round."),
    ],
)
def test_the_longest_wait_is_uncut(run: RunRecord, begun: float, over: float, last: int, words: str) -> None:
    wait = Interval("north", WAITING, last, begun, over)
    alone = replace(run)
    alone.__dict__["timeline"] = replace(run.timeline, round_starts={1: 100.0, 2: 200.0}, waits=(wait,))
    assert f"The longest wait in a queue was {words}" in timeline_caption(alone)


def test_caption_and_tables_agree_on_the_queue(run: RunRecord) -> None:
    queue = {row[0]: row[site_table(run).columns.index("queue [s]")] for row in site_table(run).rows}
    assert {name: row.queued_s for name in queue for row in run.site_jobs if row.site == name} == pytest.approx(
        {row.site: float(queue[row.site].replace(",", "")) for row in run.site_jobs}, abs=1
    )


def test_refused_submissions_are_among_the_problems(run: RunRecord) -> None:
    table = problem_table(run)
    assert table is not None and table.look == "text"
    assert [row[2:4] for row in table.rows] == [["polaris", "block failed"]] * 2
    assert "next submission in 20 s" in table.rows[1][4]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ending": GIVEN_BACK, "reason": "by 1000"}, "given back"),
        ({"ending": "timeout", "reason": "TimeLimit"}, "ran into its walltime (TimeLimit)"),
        ({"ending": "cancelled"}, "cancelled with 50 min of its walltime left"),
        ({"ending": "cancelled", "walltime_s": None}, "cancelled"),
        ({"ending": "cancelled", "started": None}, "cancelled while queued"),
        ({"ending": LEFT_BEHIND}, "left by a dead driver, cancelled by the next"),
        ({"ending": "unknown", "reason": "the scheduler no longer knows the job"}, "unknown to its scheduler"),
        ({"ending": GIVEN_BACK, "requeued": True}, "requeued by its scheduler, then given back"),
        ({"ending": "a new state"}, "a new state"),
    ],
)
def test_how_a_job_ended_as_text(changes: dict[str, Any], text: str) -> None:
    assert ending_text(replace(JOB, **changes)) == text


def test_every_loss_has_its_text() -> None:
    assert set(CAUSES) == set(LOST_ENDINGS)
    assert set(LOST_ENDINGS) <= set(ENDINGS)


@pytest.mark.parametrize(
    ("changes", "waited", "ran"),
    [
        ({}, "300 s", "10 min"),
        ({"ending": RUNNING}, "300 s", "≥ 10 min"),
        ({"ending": UNRECORDED}, "300 s", "≥ 10 min"),
        ({"ending": QUEUED, "started": None}, "≥ 15 min", "–"),
        ({"ending": UNRECORDED, "started": None}, "≥ 15 min", "–"),
    ],
)
def test_an_unknown_end_is_marked(run: RunRecord, changes: dict[str, Any], waited: str, ran: str) -> None:
    alone = replace(run)
    alone.__dict__["jobs"] = (replace(JOB, **changes),)
    (row,) = job_table(alone).rows
    assert row[6:8] == [waited, ran]


def test_the_longest_waits_are_named_first_and_short_ones_are_not() -> None:
    waits = {"a": 50.0, "b": 4000.0, "c": 11_400.0, "d": 1000.0}
    sites = [site(name, queued_s=queued_s) for name, queued_s in waits.items()]
    assert queue_sentence(sites, 18_000.0) == "c waited 3.17 h of 5 h in the queue and b 66.7 min."
    assert queue_sentence(sites[:1], 100.0) == ""
    assert queue_sentence([], 100.0) == ""


def test_more_sites_than_a_sentence_holds_are_counted() -> None:
    sites = [site(name, queued_s=3600.0 - 60 * index) for index, name in enumerate("abcde")]
    assert queue_sentence(sites, 7200.0) == "a waited 60 min of 2 h in the queue, b 59 min, c 58 min and 2 more."


def test_losses_in_words() -> None:
    preempted = replace(JOB, ending="preempted")
    again = replace(JOB, ending=GIVEN_BACK, requeued=True)
    lost = loss_sentence([site("a", JOB, preempted, continued=1), site("b", again, replace(JOB, ending=GIVEN_BACK))])
    assert lost.startswith("3 batch jobs were lost at a and b (1 by timeout, 1 by preemption, 1 by requeue)")
    assert lost.endswith("; 1 training continued in another.")
    assert loss_sentence([site("a", JOB)]) == "1 batch job was lost at a (1 by timeout)."
    assert loss_sentence([site("a", continued=2)]) == "2 trainings continued in another batch job."
    assert loss_sentence([site("a", replace(JOB, ending=GIVEN_BACK))]) == ""


def test_refusals_and_failures_in_words() -> None:
    assert refusal_sentence([site("a", refusals=("no such queue.",))]) == (
        "At a 1 submission was refused (no such queue)."
    )
    both = site("a", refusals=("x", "y"), failures=("a block has failed",))
    assert refusal_sentence([both, site("b")]) == (
        "At a 2 submissions were refused (the last: y). At a 1 batch job failed (a block has failed)."
    )
    assert refusal_sentence([site("a", refusals=("",))]) == "At a 1 submission was refused."


@pytest.mark.parametrize(("node_s", "text"), [(0, "0"), (187.2, "0.052"), (38_880, "10.8"), (4.5e6, "1,250")])
def test_node_hours_in_words(node_s: float, text: str) -> None:
    assert hours_text(node_s) == text

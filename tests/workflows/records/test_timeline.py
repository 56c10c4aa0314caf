"""The timeline: reading the journal, intervals derived from it, and tolerated defects."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import OPENED, batch_run, finished_run, start_run

from workflows.records.event_log import (
    EventLog,
    down_spans,
    full_model_nbytes,
    moves,
    read_events,
    task_runs,
    trainings,
)
from workflows.records.spans import covered_s, without
from workflows.records.timeline import (
    AGGREGATION,
    STAGING_IN,
    STAGING_OUT,
    TRAINING,
    WAITING,
    Interval,
    Timeline,
    idle_share,
    phase_seconds,
    round_lengths,
)
from workflows.records.timeline_building import build_timeline


def task(app: str, site: str, *times: float, round: int = 1, **result: Any) -> dict[str, Any]:
    """Return a task_done event; times are submitted, started and ended."""
    named = dict(zip(("submitted", "started", "ended"), times, strict=True))
    return (
        {"time": times[2], "event": "task_done", "app": app, "round": round, "site": site} | named | {"result": result}
    )


def event(name: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **fields}


ONE_ROUND = EventLog(
    (
        event("campaign_opened", 1000.0),
        event("driver_started", 1000.0, resumed=False),
        task("stage_out", "north", 1010.0, 1010.0, 1020.0, nbytes_moved=500),
        task("local_train", "north", 1010.0, 1050.0, 1150.0, tokens=70, steps_done=3),
        task("stage_in", "north", 1150.0, 1150.0, 1160.0, nbytes_moved=400),
        task("aggregate", "server", 1010.0, 1160.0, 1170.0),
        event("campaign_finished", 1200.0),
    )
)


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def test_a_journal_is_read_in_order_and_unknown_events_are_kept_out_of_the_way(tmp_path: Path) -> None:
    lines = [json.dumps(event(name, 1.0 + n)) + "\n" for n, name in enumerate(("a", "new_kind", "a"))]
    log = read_events(write_lines(tmp_path / "journal.jsonl", *lines))
    assert [e["time"] for e in log.named("a")] == [1.0, 3.0]
    assert log.notes == ()
    assert build_timeline(log, ["north"]).intervals == ()


def test_a_last_line_cut_off_in_the_middle_is_left_out_with_a_note(tmp_path: Path) -> None:
    whole = json.dumps(event("campaign_opened", 1.0)) + "\n"
    log = read_events(write_lines(tmp_path / "journal.jsonl", whole, '{"seq": 2, "time": 2.0, "ev'))
    assert [e["event"] for e in log.events] == ["campaign_opened"]
    assert log.notes == ("The last line of journal.jsonl is unfinished and was left out.",)


def test_a_last_line_without_its_end_does_not_count_even_when_it_parses(tmp_path: Path) -> None:
    whole = json.dumps(event("campaign_opened", 1.0)) + "\n"
    log = read_events(write_lines(tmp_path / "journal.jsonl", whole, json.dumps(event("late", 2.0))))
    assert len(log.events) == 1


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        "[1, 2]",
        '{"event": "no_time"}',
        '{"time": 3}',
        '{"time": 3, "event": "task_done", "started": "noon"}',
        '{"time": 3, "event": "task_done", "result": [1]}',
    ],
)
def test_an_unreadable_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    whole = json.dumps(event("a", 1.0)) + "\n"
    log = read_events(write_lines(tmp_path / "journal.jsonl", whole, bad + "\n", whole))
    assert len(log.events) == 2
    assert log.notes == ("Line 2 of journal.jsonl could not be read and was left out.",)


def test_a_file_without_a_single_event_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line is an event"):
        read_events(write_lines(tmp_path / "journal.jsonl", "hello\n", "world\n"))


@pytest.mark.parametrize("content", ["", '{"seq": 1, "ti'])
def test_an_empty_or_just_begun_journal_has_no_events(tmp_path: Path, content: str) -> None:
    assert read_events(write_lines(tmp_path / "journal.jsonl", content)).events == ()
    assert read_events(tmp_path / "absent.jsonl").events == ()


def test_a_task_without_a_start_is_taken_to_have_begun_when_it_was_submitted() -> None:
    bare = {"time": 9.0, "event": "task_done", "app": "aggregate", "submitted": 7.0, "round": None}
    (run,) = task_runs(EventLog((bare,)))
    assert (run.submitted, run.started, run.ended) == (7.0, 7.0, 9.0)
    assert (run.round, run.site, dict(run.result)) == (0, "server", {})


def test_a_clock_that_runs_ahead_never_makes_a_negative_interval() -> None:
    (run,) = task_runs(EventLog((task("stage_in", "north", 30.0, 20.0, 10.0),)))
    assert run.submitted == run.started == run.ended == 10.0


def test_the_intervals_of_one_round() -> None:
    timeline = build_timeline(ONE_ROUND, ["north", "south"])
    assert timeline.rows == ("north", "south", "server")
    assert timeline.length_s == 200.0
    assert timeline.intervals == (
        Interval("north", STAGING_OUT, 1, 10.0, 20.0),
        Interval("north", WAITING, 1, 20.0, 50.0),
        Interval("north", TRAINING, 1, 50.0, 150.0),
        Interval("north", STAGING_IN, 1, 150.0, 160.0),
        Interval("server", AGGREGATION, 1, 160.0, 170.0),
    )
    assert timeline.round_starts == {1: 10.0}
    assert timeline.seconds("north", STAGING_OUT, STAGING_IN) == 20.0


def test_waiting_begins_with_the_submission_when_the_model_was_there_before() -> None:
    log = EventLog((task("stage_out", "n", 0, 0, 5), task("local_train", "n", 8, 20, 30)))
    (wait,) = build_timeline(log, ["n"]).of("n", WAITING)
    assert (wait.start_s, wait.end_s) == (8.0, 20.0)


def test_the_wait_of_the_first_task_at_a_site_counts() -> None:
    log = EventLog((event("campaign_opened", 0.0), task("enrol", "n", 1, 600, 605, round=0)))
    assert build_timeline(log, ["n"]).seconds("n", WAITING) == 599.0


def test_a_site_that_the_campaign_no_longer_names_still_has_a_row() -> None:
    log = EventLog((task("stage_out", "gone", 0, 0, 5), task("evaluate", "evaluator", 5, 5, 6)))
    assert build_timeline(log, ["here"]).rows == ("here", "gone", "evaluator")


def test_idle_is_what_nothing_covers() -> None:
    timeline = build_timeline(ONE_ROUND, ["north", "south"])
    assert idle_share(timeline, "north") == pytest.approx(50 / 200)
    assert idle_share(timeline, "south") == 1.0


def test_the_time_between_two_drivers_is_no_idle_time() -> None:
    log = EventLog(
        (
            event("campaign_opened", 0.0),
            event("driver_started", 0.0),
            task("stage_out", "n", 0, 0, 50),
            event("driver_started", 150.0, resumed=True),
            task("stage_in", "n", 150, 150, 175),
            event("campaign_finished", 200.0),
        )
    )
    timeline = build_timeline(log, ["n"])
    assert timeline.down == ((50.0, 150.0),)
    assert timeline.down_s == 100.0
    assert idle_share(timeline, "n") == pytest.approx(25 / 100)


def test_every_gap_between_drivers_is_found_and_the_first_start_is_none() -> None:
    names = ["campaign_opened", "driver_started", "driver_stopped", "driver_started", "driver_started"]
    log = EventLog(tuple(event(name, 10.0 * n) for n, name in enumerate(names)))
    assert down_spans(log) == [(20.0, 30.0), (30.0, 40.0)]
    assert down_spans(EventLog()) == []


@pytest.mark.parametrize("name", ["campaign_changed", "blocks_cancelled", "blocks_left"])
def test_events_before_the_start_of_a_driver_are_not_of_the_last_one(name: str) -> None:
    story = (event("driver_started", 10.0), event("aggregated", 20.0), event(name, 90.0), event("driver_started", 95.0))
    assert down_spans(EventLog(story)) == [(20.0, 95.0)]


@given(st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)), max_size=8), st.integers(0, 30))
def test_covered_seconds_are_those_of_the_union(spans: list[tuple[int, int]], length: int) -> None:
    seconds = {s for start, end in spans for s in range(start, end)} & set(range(length))
    assert covered_s([(float(a), float(b)) for a, b in spans if a <= b], float(length)) == len(seconds)


def test_seconds_per_phase_are_means_over_sites_and_sums_at_the_server() -> None:
    extra = (task("stage_out", "south", 1010.0, 1010.0, 1040.0), task("evaluate", "evaluator", 1010.0, 1170.0, 1176.0))
    phases = phase_seconds(build_timeline(EventLog((*ONE_ROUND.events, *extra)), ["north", "south"]))
    assert phases[1][STAGING_OUT] == pytest.approx((10 + 30) / 2)
    assert phases[1][TRAINING] == pytest.approx(100 / 2)
    assert phases[1][AGGREGATION] == 10.0
    assert phases[1]["evaluation"] == 6.0


def test_a_round_lasts_from_its_first_site_task_to_its_last_task() -> None:
    assert round_lengths(build_timeline(ONE_ROUND, ["north"])) == {1: 160.0}


def test_a_round_is_not_charged_with_the_absence_of_the_driver() -> None:
    interval = Interval("n", TRAINING, 2, 10.0, 110.0)
    timeline = Timeline(("n",), (interval,), ((40.0, 100.0),), {2: 10.0}, 110.0)
    assert round_lengths(timeline) == {2: 40.0}


def test_moves_are_those_that_crossed_and_fall_back_on_the_size_of_the_artifact() -> None:
    log = EventLog(
        (
            task("stage_out", "n", 0, 0, 1, nbytes_moved=0, artifact={"nbytes": 9}),
            task("stage_in", "n", 1, 1, 2, artifact={"nbytes": 9}),
            task("aggregate", "server", 2, 2, 3),
        )
    )
    assert [(move.out, move.nbytes) for move in moves(task_runs(log))] == [(False, 9)]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("driver_started", "waiting for a worker"),
        ("block_submitted", "waiting in queue"),
        ("compute_submitted", "waiting in queue"),
    ],
)
def test_without_a_queue_sites_wait_for_a_worker(name: str, label: str) -> None:
    timeline = build_timeline(EventLog((*ONE_ROUND.events, event(name, 1200.0, site="north", job_id="1"))), ["north"])
    assert timeline.label(WAITING) == label
    assert timeline.label(TRAINING) == TRAINING


def test_a_round_ends_with_its_model_whatever_arrives_later() -> None:
    late = task("stage_in", "south", 1180.0, 1180.0, 1190.0)
    assert round_lengths(build_timeline(EventLog((*ONE_ROUND.events, late)), ["north"])) == {1: 160.0}


def test_a_training_recorded_twice_counts_once() -> None:
    log = EventLog(
        (
            task("local_train", "n", 0, 0, 9, tokens=5),
            task("local_train", "n", 20, 20, 21, tokens=5, reused=True),
            task("local_train", "m", 0, 0, 9, tokens=7),
        )
    )
    assert sum(run.result["tokens"] for run in trainings(task_runs(log))) == 12


def test_the_full_model_is_measured_by_prepare() -> None:
    assert full_model_nbytes(task_runs(ONE_ROUND)) is None
    log = EventLog((task("prepare", "server", 0, 0, 1, round=0, full_nbytes=123),))
    assert full_model_nbytes(task_runs(log)) == 123


def test_the_timeline_of_a_whole_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rounds=3)
    log = read_events(run.write() / "journal.jsonl")
    timeline = build_timeline(log, list(run.tasks))
    assert timeline.rows == ("perlmutter", "polaris", "aurora", "frontier", "server", "evaluator")
    assert timeline.length_s == pytest.approx(run.time - OPENED)
    assert sorted(timeline.round_starts) == [1, 2, 3]
    for site in run.tasks:
        assert [i.round for i in timeline.of(site, TRAINING)] == [1, 2, 3]
        spans = [(i.start_s, i.end_s) for i in timeline.of(site)]
        assert all(later >= end for (_, end), (later, _) in itertools.pairwise(spans))
        assert 0.0 < idle_share(timeline, site) < 1.0


def test_a_resumed_run_shows_its_gap(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run")
    run.round(1)
    run.resume(5400.0)
    run.round(2)
    timeline = build_timeline(read_events(run.write() / "journal.jsonl"), list(run.tasks))
    assert timeline.down_s == pytest.approx(5400.0)


def batch_round(*events: dict[str, Any], attempts: int = 1, submitted: float = 0.0) -> Timeline:
    """Make the timeline of a site whose training could begin at 20 s; its last attempt began at 500 s."""
    log = EventLog(
        (
            event("campaign_opened", 0.0),
            task("stage_out", "n", 0, 0, 20),
            *events,
            task("local_train", "n", submitted, 500, 600, attempts=attempts),
        )
    )
    return build_timeline(log, ["n"])


def block(job_id: str, submitted: float, begun: float, over: float, state: str = "timeout") -> list[dict[str, Any]]:
    named = {"site": "n", "job_id": job_id}
    return [
        event("block_submitted", submitted, **named, queue="q", nodes=1, walltime_s=60),
        event("block_started", begun, **named, started=begun, wait_s=begun - submitted),
        event("block_ended", over, **named, state=state, reason="", started=begun, ended=over),
    ]


def spans(timeline: Timeline, phase: str) -> list[tuple[float, float]]:
    return [(i.start_s, i.end_s) for i in timeline.of("n", phase)]


def test_a_batch_site_waits_from_the_submission_to_the_start_of_its_block() -> None:
    timeline = batch_round(*block("1", 10, 400, 900))
    assert spans(timeline, WAITING) == [(20, 400)]
    assert spans(timeline, TRAINING) == [(500, 600)]


def test_a_training_that_needs_several_blocks_is_training_in_each_and_waiting_between() -> None:
    events = [*block("1", 10, 100, 200), *block("2", 210, 480, 900)]
    assert spans(batch_round(*events, attempts=2), TRAINING) == [(100, 200), (480, 500), (500, 600)]
    assert spans(batch_round(*events, attempts=2), WAITING) == [(20, 100), (210, 480)]
    assert spans(batch_round(*events, attempts=1), TRAINING) == [(500, 600)]


def test_the_submission_of_a_second_attempt_does_not_hide_the_first() -> None:
    events = [*block("1", 10, 100, 200), *block("2", 210, 480, 900)]
    timeline = batch_round(*events, attempts=2, submitted=205.0)
    assert spans(timeline, TRAINING) == [(100, 200), (480, 500), (500, 600)]
    assert spans(timeline, WAITING) == [(20, 100), (210, 480)]


def test_a_block_that_was_ready_before_is_no_wait() -> None:
    assert spans(batch_round(*block("1", 0, 5, 900)), WAITING) == []


def late_site(*queued: dict[str, Any]) -> Timeline:
    """Make the timeline of two rounds; site n receives the model of the first while queued, and trains in the second.

    Its enrolment was submitted at 5 s and began at 260 s.
    """
    log = EventLog(
        (
            event("campaign_opened", 0.0),
            *queued,
            task("stage_out", "m", 100, 100, 110),
            task("stage_out", "n", 100, 100, 110),
            task("local_train", "m", 100, 110, 190),
            task("aggregate", "server", 190, 190, 200),
            task("stage_out", "m", 200, 200, 210, round=2),
            task("local_train", "m", 200, 210, 390, round=2),
            task("enrol", "n", 5, 260, 270, round=0),
            task("local_train", "n", 270, 275, 300),
            task("aggregate", "server", 390, 390, 400, round=2),
        )
    )
    return build_timeline(log, ["m", "n"])


@pytest.mark.parametrize(
    ("queued", "begun", "over"), [(block("1", 6, 252, 400), 6, 252), ([], 5, 260)], ids=["batch", "elsewhere"]
)
def test_a_site_that_starts_late_has_waited_all_the_time(
    queued: list[dict[str, Any]], begun: float, over: float
) -> None:
    timeline = late_site(*queued)
    (wait,) = (wait for wait in timeline.waits if wait.row == "n" and wait.length_s > 100)
    assert wait == Interval("n", WAITING, 2, begun, over)
    long = [i for i in timeline.of("n", WAITING) if i.length_s > 10]
    assert [(i.round, i.start_s, i.end_s) for i in long] == [(0, begun, 100), (1, 110, 200), (2, 200, over)]
    assert phase_seconds(timeline)[1][WAITING] == pytest.approx(90 / 2)


def test_a_site_whose_only_block_never_starts_waits_and_is_not_idle() -> None:
    submitted = event("block_submitted", 10.0, site="n", job_id="1", queue="q", nodes=1, walltime_s=60)
    timeline = late_site(submitted | {"site": "s"})
    assert [(i.start_s, i.end_s) for i in timeline.waits if i.row == "s"] == [(10, 400)]
    assert timeline.rows == ("m", "n", "s", "server")
    assert idle_share(timeline, "s") == pytest.approx(10 / 400)


def test_a_block_that_queues_while_another_runs_is_no_wait() -> None:
    events = [*block("1", 10, 100, 450), *block("2", 200, 480, 900)]
    assert spans(batch_round(*events, attempts=2), WAITING) == [(20, 100), (450, 480)]


@given(*[st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)] * 2)
def test_what_is_left_of_spans_is_in_them_and_in_none_taken(first: list[Any], second: list[Any]) -> None:
    seconds = [{s for start, end in spans for s in range(start, end)} for spans in (first, second)]
    left = without([pair for pair in first if pair[0] <= pair[1]], [pair for pair in second if pair[0] <= pair[1]])
    assert {s for start, end in left for s in range(int(start), int(end))} == seconds[0] - seconds[1]
    assert all(start < end for start, end in left)
    assert all(later >= end for (_, end), (later, _) in itertools.pairwise(left))


def test_the_timeline_has_the_jobs_on_its_own_clock(tmp_path: Path) -> None:
    run = batch_run(tmp_path / "run")
    timeline = build_timeline(read_events(run.write() / "journal.jsonl"), list(run.tasks))
    assert [job.ran_s for job in timeline.jobs[:1]] == pytest.approx([2000])
    assert all(0 <= job.submitted <= job.until <= timeline.length_s for job in timeline.jobs)
    assert timeline.seconds("perlmutter", WAITING) == pytest.approx(11_400)
    assert timeline.seconds("frontier", WAITING) > 0
    for site in run.tasks:
        covered = [(i.start_s, i.end_s) for i in timeline.of(site)]
        assert all(later >= end - 1e-6 for (_, end), (later, _) in itertools.pairwise(covered))

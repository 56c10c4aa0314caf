"""Batch jobs read from the journal: times, endings, sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import OPENED, TRAIN_S, batch_run

from workflows.records.batch_jobs import (
    GIVEN_BACK,
    LEFT_BEHIND,
    QUEUED,
    RUNNING,
    UNRECORDED,
    BatchJob,
    batch_jobs,
)
from workflows.records.event_log import EventLog, down_spans, read_events
from workflows.records.site_jobs import SiteJobs, site_jobs


def event(name: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, "site": "north", **fields}


def submitted(time: float, job_id: str = "7", **fields: Any) -> dict[str, Any]:
    named = {"job_id": job_id, "block": "0", "queue": "debug", "nodes": 2, "walltime_s": 3600}
    return event("block_submitted", time, **(named | fields))


def started(time: float, wait_s: float, job_id: str = "7") -> dict[str, Any]:
    return event("block_started", time + 5, job_id=job_id, started=time, wait_s=wait_s)


def ended(time: float, state: str, begun: float | None, job_id: str = "7", reason: str = "") -> dict[str, Any]:
    return event("block_ended", time + 5, job_id=job_id, state=state, reason=reason, started=begun, ended=time)


def trained(begun: float, done: float, **result: Any) -> dict[str, Any]:
    times = {"submitted": begun, "started": begun, "ended": done}
    return event("task_done", done, app="local_train", round=result.pop("round", 1), **times, result=result)


def log(*events: dict[str, Any]) -> EventLog:
    return EventLog((event("campaign_opened", 0.0), event("driver_started", 1.0), *events))


def only(*events: dict[str, Any], per_round: tuple[str, ...] = ()) -> BatchJob:
    (job,) = batch_jobs(log(*events), per_round)
    return job


def sums(*events: dict[str, Any]) -> SiteJobs:
    journal = log(*events)
    (site,) = site_jobs(journal, batch_jobs(journal))
    return site


def test_a_job_has_the_times_of_its_scheduler() -> None:
    job = only(submitted(103.0), started(700.0, 600.0), ended(1000.0, "timeout", 700.0))
    assert (job.submitted, job.started, job.until) == (100.0, 700.0, 1000.0)
    assert (job.waited_s, job.ran_s, job.queued, job.ran) == (600.0, 300.0, (100.0, 700.0), (700.0, 1000.0))
    assert (job.job_id, job.queue, job.nodes, job.walltime_s) == ("7", "debug", 2, 3600.0)
    assert job.ending == "timeout" and job.lost


def test_a_job_that_never_started_only_waited() -> None:
    job = only(submitted(100.0), ended(400.0, "failed", None))
    assert (job.waited_s, job.ran_s, job.ran) == (300.0, 0.0, None)


def test_a_job_without_an_end_lasts_until_the_last_record() -> None:
    beat = event("aggregated", 900.0)
    assert (only(submitted(100.0), beat).ending, only(submitted(100.0), beat).waited_s) == (QUEUED, 800.0)
    running = only(submitted(100.0), started(300.0, 200.0), beat)
    assert (running.ending, running.ran_s) == (RUNNING, 600.0)


@pytest.mark.parametrize("last", ["campaign_finished", "driver_stopped"])
def test_a_job_without_an_end_in_a_finished_campaign_is_unrecorded(last: str) -> None:
    assert only(submitted(100.0), started(300.0, 200.0), event(last, 900.0)).ending == UNRECORDED


def test_a_job_of_a_killed_driver_lasts_until_its_last_record() -> None:
    job = only(submitted(100.0), started(300.0, 200.0), trained(310.0, 400.0), event("driver_started", 5000.0))
    assert (job.ending, job.until) == (UNRECORDED, 400.0)


def test_a_job_cancelled_by_a_resume_was_left_behind_and_the_event_is_not_of_the_dead_driver() -> None:
    journal = log(
        submitted(100.0),
        event("aggregated", 400.0),
        event("blocks_cancelled", 4990.0, job_ids=["7", "99"], reason="left by an earlier driver"),
        event("driver_started", 5000.0),
    )
    (job,) = batch_jobs(journal)
    assert (job.ending, job.until, job.waited_s) == (LEFT_BEHIND, 4990.0, 4890.0)
    assert down_spans(journal) == [(400.0, 5000.0)]


def test_jobs_cancelled_at_the_end_of_a_campaign_are_given_back() -> None:
    end = [ended(1000.0, "cancelled", 300.0), event("campaign_finished", 1010.0)]
    assert only(submitted(100.0), started(300.0, 200.0), trained(310.0, 990.0), *end).ending == GIVEN_BACK
    stopped = [ended(1000.0, "cancelled", 300.0), event("driver_stopped", 1010.0), event("driver_started", 2000.0)]
    resumed = batch_jobs(log(submitted(100.0), started(300.0, 200.0), *stopped, submitted(2010.0, "8")))
    assert [job.ending for job in resumed] == [GIVEN_BACK, QUEUED]


@pytest.mark.parametrize("later", [submitted(1100.0, "8"), trained(1100.0, 1200.0), event("aggregated", 1300.0)])
def test_jobs_cancelled_while_the_campaign_continues_are_cancelled(later: dict[str, Any]) -> None:
    story = [submitted(100.0), started(300.0, 200.0), ended(1000.0, "cancelled", 300.0), later]
    assert batch_jobs(log(*story))[0].ending == "cancelled"
    assert batch_jobs(log(*story), per_round=["north"])[0].ending == GIVEN_BACK


@pytest.mark.parametrize(("asked", "ending"), [(True, GIVEN_BACK), (False, "cancelled")])
def test_the_recorded_origin_of_a_cancellation_counts(asked: bool, ending: str) -> None:
    end = ended(1000.0, "cancelled", 300.0) | {"asked": asked}
    for later in (trained(1100.0, 1200.0), event("campaign_finished", 1010.0)):
        assert batch_jobs(log(submitted(100.0), started(300.0, 200.0), end, later))[0].ending == ending


def test_a_job_id_that_is_submitted_again_is_a_new_job() -> None:
    first = [submitted(100.0), started(110.0, 10.0), ended(200.0, "requeued", 110.0)]
    jobs = batch_jobs(log(*first, submitted(200.0), started(500.0, 300.0), ended(900.0, "timeout", 500.0)))
    assert [(job.waited_s, job.ran_s, job.ending) for job in jobs] == [(10, 90, "requeued"), (300, 400, "timeout")]


def test_a_job_that_its_scheduler_started_twice() -> None:
    job = only(
        submitted(100.0), started(110.0, 10.0), ended(900.0, "cancelled", 500.0), event("campaign_finished", 999.0)
    )
    assert (job.submitted, job.started, job.waited_s, job.ran_s) == (100.0, 500.0, 400.0, 400.0)
    assert job.requeued and job.lost and job.ending == GIVEN_BACK


def test_two_sites_may_have_the_same_job_id() -> None:
    other = {"site": "south"}
    jobs = batch_jobs(log(submitted(100.0), submitted(100.0) | other, ended(300.0, "failed", 200.0) | other))
    assert [(job.site, job.ending) for job in jobs] == [("north", QUEUED), ("south", "failed")]


def test_incomplete_records_are_read() -> None:
    journal = log(
        event("block_submitted", 10.0), event("block_ended", 20.0, job_id="unknown"), event("block_failed", 30.0)
    )
    (job,) = batch_jobs(journal)
    assert (job.nodes, job.walltime_s, job.queue) == (1, None, "")
    (site,) = site_jobs(journal, [job])
    assert (site.refusals, site.failures) == ((), ())


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.booleans(),
    st.sampled_from(["timeout", "cancelled", "completed", None]),
)
def test_no_job_waits_or_runs_for_negative_seconds(
    requested: float, begun: float, over: float, has_started: bool, state: str | None
) -> None:
    """Clocks differ between machines, and schedulers round to seconds."""
    events = [submitted(requested)] + [started(begun, 0.0)] * has_started
    events += [ended(over, state, begun if has_started else None)] if state else []
    job = only(*events)
    assert job.waited_s >= 0 and job.ran_s >= 0
    assert job.queued[0] <= job.queued[1] <= job.until


def test_a_job_can_be_shifted_to_the_clock_of_the_campaign() -> None:
    job = only(submitted(103.0), started(700.0, 600.0), ended(1000.0, "timeout", 700.0)).shifted(50.0)
    assert (job.submitted, job.started, job.until, job.ran_s) == (50.0, 650.0, 950.0, 300.0)
    assert only(submitted(103.0)).shifted(50.0).started is None


def test_node_seconds_held_and_spent_training() -> None:
    site = sums(
        submitted(100.0),
        started(200.0, 100.0),
        trained(210.0, 500.0, train_s=250.0, attempts=1),
        ended(600.0, "timeout", 200.0),
        submitted(600.0, "8", nodes=4),
        started(900.0, 300.0, "8"),
        trained(910.0, 1000.0, round=2, train_s=80.0, attempts=1),
        ended(1000.0, "cancelled", 900.0, "8"),
    )
    assert site.queued_s == 100 + 300
    assert site.held_node_s == 2 * 400 + 4 * 100
    assert site.trained_node_s == 2 * 250 + 4 * 80
    assert (site.continued, [job.job_id for job in site.lost]) == (0, ["7"])


@pytest.mark.parametrize(("attempts", "over", "continued"), [(2, 600.0, 1), (1, 600.0, 0), (2, 5000.0, 0)])
def test_a_training_was_continued_if_it_was_begun_in_a_job_that_is_over(
    attempts: int, over: float, continued: int
) -> None:
    site = sums(
        submitted(100.0),
        started(200.0, 100.0),
        ended(over, "timeout", 200.0),
        submitted(600.0, "8"),
        started(900.0, 300.0, "8"),
        trained(910.0, 1000.0, train_s=80.0, attempts=attempts),
    )
    assert site.continued == continued


def test_a_loss_between_two_trainings_interrupts_none() -> None:
    site = sums(
        submitted(100.0),
        started(200.0, 100.0),
        trained(210.0, 500.0, train_s=9.0),
        ended(400.0, "timeout", 200.0),
        submitted(600.0, "8"),
        started(900.0, 300.0, "8"),
        trained(910.0, 1000.0, round=2, train_s=9.0, attempts=2),
    )
    assert site.continued == 0


def test_refused_submissions_and_failed_jobs_are_separate() -> None:
    failures = (
        {"kind": "refused", "reason": "no such queue"},
        {"kind": "stillborn", "reason": "no module"},
        {"kind": "failed", "reason": "node_fail NodeDown"},  # its job has an ending, which says so
        {"reason": "a sentence of older code"},
    )
    site = sums(*(event("block_failed", 10.0, retry_s=10.0, **failure) for failure in failures))
    assert (site.site, site.jobs, site.queued_s) == ("north", (), 0.0)
    assert site.refusals == ("no such queue",)
    assert site.failures == ("a block ended before its worker began: no module",)


def test_the_jobs_of_a_whole_campaign(tmp_path: Path) -> None:
    run = batch_run(tmp_path / "run")
    journal = read_events(run.write() / "journal.jsonl")
    by_site = {site.site: site for site in site_jobs(journal, batch_jobs(journal))}
    assert list(by_site) == ["perlmutter", "aurora", "polaris"]
    first = by_site["perlmutter"]
    assert [job.ending for job in first.jobs] == ["timeout", "node_fail", GIVEN_BACK]
    assert [job.waited_s for job in first.jobs] == pytest.approx([7200, 3600, 600])
    assert [job.ran_s for job in first.jobs[:2]] == pytest.approx([2000, 1500])
    assert first.queued_s == pytest.approx(11_400)
    assert first.trained_node_s == 3 * 4 * TRAIN_S
    assert (first.continued, by_site["aurora"].continued, by_site["polaris"].continued) == (2, 0, 0)
    assert by_site["aurora"].held_node_s == pytest.approx(8 * by_site["aurora"].jobs[0].ran_s)
    assert by_site["polaris"].refusals == ("qsub: Job violates limits",) * 2
    assert all(OPENED < job.submitted <= job.until <= run.time for site in by_site.values() for job in site.jobs)

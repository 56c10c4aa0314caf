"""Tests of queries to a PBS server whose commands answer as OpenPBS does."""

from __future__ import annotations

import pytest
from facilities.daemons import FacilityError
from facilities.pbs import PbsFacility

from site_configs.library.schedulers import GONE, UNKNOWN, JobFacts
from site_configs.library.schedulers.pbs import Pbs

pytestmark = pytest.mark.slurm

ONE_NODE = ("-A", "fusion", "-q", "debug", "-l", "select=1:ncpus=1")
TWO_NODES = ("-A", "fusion", "-q", "prod", "-l", "select=2:ncpus=1")


def facts(facility: PbsFacility, job_id: str) -> JobFacts:
    answer = Pbs(facility.environment).jobs([job_id])[job_id]
    assert isinstance(answer, JobFacts), answer
    return answer


def test_a_job_is_followed_from_waiting_to_its_end(pbs_site: PbsFacility) -> None:
    job_id = pbs_site.submit("exit 3", *TWO_NODES, "-N", "crossfed-7f3a", "-h", "-l", "walltime=00:05:00")
    waiting = facts(pbs_site, job_id)
    assert (waiting.name, waiting.state, waiting.started) == ("crossfed-7f3a", "pending", None)
    assert (waiting.nodes, waiting.walltime_s, waiting.queue) == (2, 300, "prod")
    pbs_site.cluster.run("scontrol", "release", job_id.split(".")[0])
    pbs_site.wait_for_state(job_id, "F")
    ended = facts(pbs_site, job_id)
    assert (ended.state, ended.exit_code) == ("failed", 3)
    assert waiting.submitted and ended.started and ended.ended
    assert waiting.submitted <= ended.started <= ended.ended


def test_walltime_is_a_timeout(pbs_site: PbsFacility) -> None:
    job_id = pbs_site.submit("sleep 60", *ONE_NODE, "-l", "walltime=00:00:01")
    pbs_site.wait_for_state(job_id, "F")
    ended = facts(pbs_site, job_id)
    assert (ended.state, ended.exit_code) == ("timeout", None) and "exceeded resource walltime" in ended.reason


def test_cancelled_before_and_after_the_start(pbs_site: PbsFacility) -> None:
    pbs = Pbs(pbs_site.environment)
    held, running = pbs_site.submit("true", *TWO_NODES, "-h"), pbs_site.submit("exec sleep 60", *ONE_NODE)
    pbs_site.wait_for_state(running, "R")
    assert facts(pbs_site, running).state == "running" and facts(pbs_site, running).exit_code is None
    assert pbs.cancel([held, running]) == []
    for job_id in (held, running):
        pbs_site.wait_for_state(job_id, "F")
        assert facts(pbs_site, job_id).state == "cancelled"
    assert pbs.cancel([held, running, "99999.pbs"]) == []


def test_preemption_is_not_cancellation(pbs_site: PbsFacility) -> None:
    job_id = pbs_site.submit("exec sleep 60", *ONE_NODE)
    pbs_site.wait_for_state(job_id, "R")
    pbs_site.preempt(job_id, grace_s=0.1)
    pbs_site.wait_for_state(job_id, "F")
    assert facts(pbs_site, job_id).state == "preempted"


def test_a_node_without_power_ends_its_job(pbs_site: PbsFacility) -> None:
    job_id = pbs_site.submit("exec sleep 60", *ONE_NODE)
    pbs_site.wait_for_state(job_id, "R")
    node = pbs_site.job(job_id)["exec_host"].split("/")[0]
    pbs_site.cluster.node_down(node)
    try:
        pbs_site.wait_for_state(job_id, "F")
        assert facts(pbs_site, job_id).state == "node_fail"
    finally:
        pbs_site.cluster.node_up(node)


def test_one_unknown_id_does_not_spoil_the_others(pbs_site: PbsFacility) -> None:
    job_id = pbs_site.submit("sleep 60", *ONE_NODE)
    answers = Pbs(pbs_site.environment).jobs(["99999.pbs", job_id])
    alive = answers[job_id]
    assert answers["99999.pbs"] is GONE and isinstance(alive, JobFacts) and alive.live


def test_without_history_what_lives_is_seen_and_what_ended_is_not_known_to_have(pbs_site: PbsFacility) -> None:
    running, done = pbs_site.submit("sleep 60", *ONE_NODE), pbs_site.submit("true", *TWO_NODES)
    pbs_site.wait_for_state(done, "F")
    pbs_site.write_policy(history=False)
    try:
        answers = Pbs(pbs_site.environment).jobs([running, done, "99999"])
    finally:
        pbs_site.write_policy(history=True)
    alive = answers[running]
    assert isinstance(alive, JobFacts) and alive.live
    assert answers[done] is GONE and answers["99999"] is GONE


def test_a_lost_submission_is_found_by_its_token(pbs_site: PbsFacility) -> None:
    pbs = Pbs(pbs_site.environment)
    pbs_site.lose_answers(1)
    with pytest.raises(FacilityError, match="cannot connect"):
        pbs_site.submit("sleep 60", *ONE_NODE, "-N", "crossfed-7f3a")
    (found,) = pbs.find("7f3a") or ()
    assert found.live and found.queue == "debug"
    assert pbs.mine("debug") == [found] or [job.job_id for job in pbs.mine("debug") or ()] == [found.job_id]
    assert pbs.mine("prod") == [] == pbs.find("nosuchtoken")


@pytest.mark.parametrize("odd", [("function", "R"), ("zeros", "Q"), ("control", "H"), ("plain", "M"), ("plain", "X")])
def test_odd_jobs_of_the_same_user_hide_none_of_ours(pbs_site: PbsFacility, odd: tuple[str, str]) -> None:
    job_id = pbs_site.submit("sleep 60", *ONE_NODE, "-N", "cf-0123456789-ab", "-v", f"LONG={'x' * 200}")
    pbs = Pbs(pbs_site.environment)
    pbs_site.odd_jobs(odd, odd)
    try:
        assert [job.job_id for job in pbs.find("cf-0123456789") or ()] == [job_id]
        assert pbs.find("nosuchtoken") == [] and job_id in [job.job_id for job in pbs.mine("debug") or ()]
        assert facts(pbs_site, job_id).live
    finally:
        pbs_site.odd_jobs()


def test_our_own_job_is_read_and_cancelled_where_its_json_is_invalid(pbs_site: PbsFacility) -> None:
    pbs_site.odd_jobs(("function", "R"), name="cf-0123456789-cd")
    try:
        (found,) = Pbs(pbs_site.environment).find("cf-0123456789-c") or ()
        alone = Pbs(pbs_site.environment)._job(found.job_id)  # from its JSON
    finally:
        pbs_site.odd_jobs()
    assert isinstance(alone, JobFacts) and (found.state, alone.state, alone.nodes) == ("running", "running", 1)


def test_a_silent_server_leaves_everything_unknown(pbs_site: PbsFacility) -> None:
    pbs = Pbs(pbs_site.environment)
    job_id = pbs_site.submit("sleep 60", *ONE_NODE)
    pbs_site.stop_server()
    try:
        assert pbs.jobs([job_id]) == {job_id: UNKNOWN}
        assert pbs.find("x") is None and pbs.mine("debug") is None and pbs.cancel([job_id]) == [job_id]
        assert "does not answer" in str(pbs.queue_problem("debug"))
    finally:
        pbs_site.start_server()
    assert facts(pbs_site, job_id).live


def test_queues_that_take_no_jobs_or_start_none(pbs_site: PbsFacility) -> None:
    pbs = Pbs(pbs_site.environment)
    assert pbs.queue_problem("debug") is None and pbs.queue_problem("nosuch") == "there is no queue nosuch"
    try:
        pbs_site.set_queue("debug", enabled=False)
        assert pbs.queue_problem("debug") == "queue debug takes no jobs (enabled = False)"
        pbs_site.set_queue("debug", started=False)
        assert pbs.queue_problem("debug") == "queue debug takes jobs and starts none (started = False)"
    finally:
        pbs_site.set_queue("debug")

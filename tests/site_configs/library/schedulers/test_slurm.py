"""Tests of queries to real Slurm clusters, with and without accounting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from facilities.daemons import FacilityError, wait_until
from facilities.slurm import SlurmCluster, slurm_cluster

from site_configs.library.schedulers import GONE, UNKNOWN, JobFacts
from site_configs.library.schedulers.refusals import classify
from site_configs.library.schedulers.slurm import Slurm
from site_configs.library.schedulers.waits import Wait, meaning_of

pytestmark = pytest.mark.slurm

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
LONG_NAME = "crossfed-campaign-of-a-rather-long-name-7f3a91"


@pytest.fixture(scope="module", autouse=True)
def over_time(short_root: Path) -> Iterator[tuple[SlurmCluster, str]]:
    """Yield a job over its time limit; the controller needs up to 30 s for it, while the other tests run."""
    with slurm_cluster(short_root, "overtime", nodes=1) as cluster:
        job_id = cluster.submit("exec sleep 300")
        cluster.wait_for_state(job_id, "RUNNING")
        cluster.end_now(job_id)
        yield cluster, job_id


@pytest.fixture(scope="module", autouse=True)
def forgetful(short_root: Path) -> Iterator[tuple[SlurmCluster, str]]:
    """Yield a cluster without accounting that forgets ended jobs after some seconds, and a job that it will forget."""
    with slurm_cluster(short_root, "forget", remember_s=2) as cluster:
        yield cluster, cluster.submit("true")


def facts(cluster: SlurmCluster, job_id: str) -> JobFacts:
    answer = Slurm(cluster.environment).jobs([job_id])[job_id]
    assert isinstance(answer, JobFacts), answer
    return answer


def test_a_job_is_followed_from_waiting_to_its_end(slurm_site: SlurmCluster) -> None:
    job_id = slurm_site.submit("exit 3", f"--job-name={LONG_NAME}", "--hold", "--time=5", "--nodes=1")
    waiting = facts(slurm_site, job_id)
    assert (waiting.name, waiting.state, waiting.reason) == (LONG_NAME, "pending", "JobHeldUser")
    assert waiting.submitted is not None and waiting.started is None and waiting.walltime_s == 300
    slurm_site.run("scontrol", "release", job_id)
    slurm_site.wait_for_state(job_id, *ENDED)
    ended = facts(slurm_site, job_id)
    assert (ended.state, ended.exit_code, ended.queue, ended.nodes) == ("failed", 3, "debug", 1)
    assert ended.started is not None and ended.ended is not None
    assert waiting.submitted <= ended.started <= ended.ended


def test_several_jobs_at_once_and_each_has_its_answer(slurm_site: SlurmCluster) -> None:
    good, endless = slurm_site.submit("true"), slurm_site.submit("sleep 60")
    slurm_site.wait_for_state(good, *ENDED)
    slurm_site.wait_for_state(endless, "RUNNING")
    answers = Slurm(slurm_site.environment).jobs([good, endless, "999999"])
    states = {i: a.state if isinstance(a, JobFacts) else a for i, a in answers.items()}
    assert states == {good: "completed", endless: "running", "999999": GONE}
    assert Slurm(slurm_site.environment).jobs([]) == {}


def test_cancelled_before_and_after_the_start(slurm_site: SlurmCluster) -> None:
    slurm = Slurm(slurm_site.environment)
    held, running = slurm_site.submit("true", "--hold"), slurm_site.submit("exec sleep 60")
    slurm_site.wait_for_state(running, "RUNNING")
    assert slurm.cancel([held, running]) == [] == slurm.cancel([held, "999999"])
    slurm_site.wait_for_state(running, *ENDED)
    assert (facts(slurm_site, held).state, facts(slurm_site, held).started) == ("cancelled", None)
    ended = facts(slurm_site, running)
    assert ended.state == "cancelled" and ended.started is not None and ended.ended is not None


def test_a_preempted_job_says_so(slurm_site: SlurmCluster) -> None:
    job_id = slurm_site.submit("exec sleep 60", "--partition=spot", "--no-requeue")
    slurm_site.wait_for_state(job_id, "RUNNING")
    slurm_site.preempt(job_id)
    slurm_site.wait_for_state(job_id, *ENDED)
    assert facts(slurm_site, job_id).state == "preempted"


def test_a_job_whose_node_is_gone_says_so(slurm_site: SlurmCluster) -> None:
    job_id = slurm_site.submit("exec sleep 60", "--no-requeue")
    slurm_site.wait_for_state(job_id, "RUNNING")
    (node,) = slurm_site.jobs()[job_id].nodes
    slurm_site.node_down(node)
    try:
        slurm_site.wait_for_state(job_id, *ENDED)
        assert facts(slurm_site, job_id).state == "node_fail"
    finally:
        slurm_site.node_up(node)


def test_a_lost_submission_is_found_by_its_token(slurm_site: SlurmCluster) -> None:
    slurm = Slurm(slurm_site.environment)
    job_id = slurm_site.submit("sleep 60", f"--job-name={LONG_NAME}", "--partition=regular", "--nodes=2")
    assert [job.job_id for job in slurm.find("7f3a91") or ()] == [job_id]
    assert [job.job_id for job in slurm.mine("regular") or ()] == [job_id]
    assert slurm.mine("debug") == [] == slurm.find("nosuchtoken")


def test_problems_of_queues_and_accounts(slurm_site: SlurmCluster) -> None:
    slurm = Slurm(slurm_site.environment)
    assert slurm.queue_problem("debug") is None and slurm.queue_problem("short") is None
    assert slurm.queue_problem("nosuch") == "there is no partition or QOS nosuch"
    assert slurm.account_problem("fusion") is None and slurm.account_problem("") is None
    message = slurm.account_problem("weather")
    assert message is not None and message.startswith(
        "account weather is not yours on shared; yours are: default, fusion"
    )
    slurm_site.set_partition("regular", "drain")
    try:
        assert slurm.queue_problem("regular") == "partition regular is draining: it takes no jobs"
    finally:
        slurm_site.set_partition("regular", "up")


def test_sacct_reports_jobs_while_the_controller_is_down(slurm_site: SlurmCluster) -> None:
    job_id, running = slurm_site.submit("exit 3"), slurm_site.submit("sleep 60", "--no-requeue")
    slurm_site.wait_for_state(job_id, *ENDED)
    slurm_site.wait_for_state(running, "RUNNING")
    while "FAILED" not in slurm_site.run("sacct", "-n", "-X", "-j", job_id, "--format=state"):
        assert facts(slurm_site, job_id).state == "failed"
    slurm_site.stop_controller()
    try:
        answers = Slurm(slurm_site.environment, limit_s=1).jobs([job_id, running])
    finally:
        slurm_site.start_controller()
    ended = answers[job_id]
    assert isinstance(ended, JobFacts) and (ended.state, ended.exit_code) == ("failed", 3)
    assert answers[running] is UNKNOWN
    assert facts(slurm_site, running).state == "running"


def test_without_accounting_a_forgotten_job_is_gone_and_a_silent_controller_unknown(
    forgetful: tuple[SlurmCluster, str],
) -> None:
    cluster, job_id = forgetful
    slurm, running = Slurm(cluster.environment, limit_s=1), cluster.submit("sleep 60")
    cluster.wait_for_state(running, "RUNNING")
    wait_until("the controller to forget", lambda: job_id not in cluster.jobs())
    answers = slurm.jobs([job_id, running])
    alive = answers[running]
    assert answers[job_id] is GONE and isinstance(alive, JobFacts) and alive.state == "running"
    assert slurm.account_problem("weather") is None
    cluster.stop_controller()
    try:
        assert slurm.jobs([job_id, running]) == {job_id: UNKNOWN, running: UNKNOWN}
        assert slurm.find("x") is None and slurm.cancel([running]) == [running]
        assert "does not answer" in str(slurm.queue_problem("debug"))
    finally:
        cluster.start_controller()
    assert slurm.cancel([running]) == []


def test_a_job_over_its_time_says_so(over_time: tuple[SlurmCluster, str]) -> None:
    cluster, job_id = over_time
    cluster.wait_for_state(job_id, *ENDED)
    assert facts(cluster, job_id).state == "timeout"


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--partition=nosuch"], "request"),
        (["--qos=nosuch"], "request"),
        (["--account=nosuch"], "request"),
        (["--constraint=h100"], "request"),
        (["--nosuchoption"], "request"),
        (["--partition=debug", "--time=45"], "request"),
        (["--partition=debug", "--nodes=2"], "request"),
        (["--qos=short", "--time=30"], "request"),
        (["--nodes=99"], "request"),
        (["--gres=gpu:99"], "request"),
    ],
)
def test_the_sentences_of_slurm_about_wrong_requests(slurm_site: SlurmCluster, options: list[str], cause: str) -> None:
    with pytest.raises(FacilityError) as refused:
        slurm_site.submit("true", *options)
    assert classify(str(refused.value)).cause == cause, refused.value


def test_of_two_lines_about_one_option_the_last_counts(slurm_site: SlurmCluster) -> None:
    job_id = slurm_site.submit("#SBATCH --partition=debug\n#SBATCH --partition=regular\nsleep 60", "--hold")
    assert facts(slurm_site, job_id).queue == "regular"


def test_slurm_refuses_a_job_beyond_a_limit_and_says_so(slurm_site: SlurmCluster) -> None:
    for _ in range(4):
        slurm_site.submit("sleep 60", "--partition=regular", "--hold")
    with pytest.raises(FacilityError) as refused:
        slurm_site.submit("true", "--partition=regular")
    assert classify(str(refused.value)).cause == "limit", refused.value


def test_why_a_job_waits_and_until_when(slurm_site: SlurmCluster) -> None:
    first = slurm_site.submit(
        "exec sleep 60", "--partition=regular", "--qos=short", "--time=5", "--nodes=4", "--exclusive"
    )
    slurm_site.wait_for_state(first, "RUNNING")
    limited = slurm_site.submit("true", "--partition=regular", "--qos=short", "--time=5")
    behind = slurm_site.submit("true", "--time=5", "--nodes=4", "--exclusive", "--partition=regular")
    held = slurm_site.submit("true", "--hold")

    def reasons() -> dict[str, str]:
        return {job_id: facts(slurm_site, job_id).reason for job_id in (limited, behind, held)}

    wait_until("the reasons", lambda: reasons()[limited].startswith("QOSMax"), slurm_site.root / "log", 30)
    found = reasons()
    assert (
        found[limited] == "QOSMaxJobsPerUserLimit"
        and "running jobs" in (meaning_of(found[limited]) or Wait("")).meaning
    )
    assert found[held] == "JobHeldUser" and (meaning_of(found[held]) or Wait("")).lasting
    assert meaning_of(found[behind]) is None and facts(slurm_site, behind).started is None
    started = facts(slurm_site, first).started
    wait_until("an estimate", lambda: facts(slurm_site, behind).expected_start is not None, slurm_site.root / "log", 30)
    expected = facts(slurm_site, behind).expected_start
    assert started and expected and started < expected <= started + 310

"""Tests of parsing the output of schedulers, recorded from Slurm 22.05, OpenPBS 23.06 and a Polaris of 2023."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_configs.library.schedulers import GONE, UNKNOWN, JobFacts, scheduler_for
from site_configs.library.schedulers.commands import ask, duration_s
from site_configs.library.schedulers.pbs import Pbs, job_facts
from site_configs.library.schedulers.slurm import Slurm
from site_configs.library.schedulers.slurm_rows import accounted_jobs, queue_rows, wait_status

SQUEUE = """\
4|CANCELLED|1795370766|1795370766|1795370766|1|debug|0|Resources|1:00:00||normal|killed.sh|
1|FAILED|1795370764|1795370765|1795370766|1|debug|768|NonZeroExitCode|1:00:00|beta1|normal|a|b c|
3|PENDING|1795370766|1795374366|1795374966|2|debug|0|Resources|10:00||normal|wait.sh|
5|PENDING|1795370766|N/A|N/A|1|debug|0|JobHeldUser|1-02:00:00||short|held.sh|
2|RUNNING|1795370765|1795370766|1795374366|2|debug|0|None|UNLIMITED|beta[1-2]|normal|crossfed-7f3a|
9|WARPED|1795370765|1795370766|1795374366|2|debug|0|None|1:00:00|beta[1-2]|normal|later.sh|
"""
SACCT = """\
1|FAILED|1795370764|1795370765|1795370766|1|debug|3:0|None|60|a|b c
4|CANCELLED by 0|1795370766|None|1795370766|1|debug|0:0|None|60|killed.sh
6|TIMEOUT|1795370700|1795370765|1795370825|2|debug|0:0|None|1|long.sh
7|OUT_OF_MEMORY|1795370700|1795370765|1795370825|2|debug|0:9|None|UNLIMITED|big.sh
2|RUNNING|1795370765|1795370766|Unknown|2|debug|0:0|None|60|crossfed-7f3a
"""
FAILED = JobFacts("1", "a|b c", "failed", 1795370764, 1795370765, 1795370766, 1, "debug", 3, "NonZeroExitCode", 3600)
CONTROLLER_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"

PBS_JOB: dict[str, Any] = {
    "Job_Name": "crossfed-7f3a",
    "Job_Owner": "me@login-02.example.org",
    "job_state": "F",
    "queue": "debug",
    "ctime": "Sat Dec  3 20:25:38 2022",
    "stime": "Sat Dec  3 20:30:00 2022",
    "Exit_status": 0,
    "substate": 92,
    "Resource_List": {"nodect": 2, "select": "2:ncpus=64", "walltime": "01:00:00"},
    "resources_used": {"walltime": "00:10:05"},
    "comment": "Job run at Sat Dec 03 at 20:30 on (x3004c0s7b0n0:ncpus=64) and finished",
}
STARTED = time.mktime((2022, 12, 3, 20, 30, 0, 0, 0, -1))

Recorder = Callable[..., dict[str, str]]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorder:
    """Return a function that puts commands on PATH with recorded answers: (output, error, exit code)."""

    def record(**commands: tuple[str, str, int]) -> dict[str, str]:
        for name, (out, error, code) in commands.items():
            (tmp_path / f"{name}.out").write_text(out)
            (tmp_path / f"{name}.error").write_text(error)
            script = f"#!/bin/sh\n/bin/cat {tmp_path}/{name}.out; /bin/cat {tmp_path}/{name}.error >&2; exit {code}\n"
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        return {"PATH": str(tmp_path)}

    return record


def pbs_answer(*jobs: tuple[str, dict[str, Any]]) -> str:
    return json.dumps({"timestamp": 1, "pbs_server": "pbs-01", **({"Jobs": dict(jobs)} if jobs else {})})


# ---------------------------------------------------------------- Slurm


def test_rows_of_squeue_are_facts_and_expected_times_are_not() -> None:
    rows = {row.job_id: row for row in queue_rows(SQUEUE)}
    pending, running, cancelled = rows["3"].facts, rows["2"].facts, rows["4"].facts
    assert rows["1"].facts == FAILED
    assert pending and (pending.started, pending.ended, pending.walltime_s) == (None, None, 600)
    assert running and (running.started, running.ended, running.reason) == (1795370766, None, "")
    assert running.walltime_s is None and running.exit_code is None and running.live
    assert cancelled and (cancelled.started, cancelled.exit_code, cancelled.live) == (None, None, False)
    assert rows["5"].qos == "short" and rows["5"].facts and rows["5"].facts.walltime_s == 26 * 3600


def test_rows_of_sacct_are_the_same_facts() -> None:
    jobs = accounted_jobs(SACCT)
    assert jobs["1"] == replace(FAILED, reason="")
    assert (jobs["4"].state, jobs["4"].started, jobs["4"].exit_code) == ("cancelled", None, None)
    assert (jobs["6"].state, jobs["6"].walltime_s) == ("timeout", 60)
    assert (jobs["7"].state, jobs["7"].exit_code, jobs["7"].walltime_s) == ("out_of_memory", 137, None)


def test_an_undocumented_state_is_unknown(recorded: Recorder) -> None:
    environment = recorded(squeue=(SQUEUE, "", 0), sacct=("", "", 0))
    assert scheduler_for("slurm", environment).jobs(["9", "3"])["9"] is UNKNOWN


@pytest.mark.parametrize(
    ("squeue", "sacct", "expected"),
    [
        (("", "", 0), (SACCT, "", 0), "timeout"),  # forgotten by the controller, recorded
        (("", "", 0), ("", "", 0), GONE),
        (("", "", 0), ("", "Slurm accounting storage is disabled", 1), GONE),
        (("", "", 0), ("", "sacct: error: slurm_persist_conn_open: failed", 1), UNKNOWN),
        (("", CONTROLLER_DOWN, 1), (SACCT, "", 0), "timeout"),  # an end is an end
        (("", CONTROLLER_DOWN, 1), ("", "", 0), UNKNOWN),  # perhaps only just submitted
        (("", CONTROLLER_DOWN, 1), ("", "Slurm accounting storage is disabled", 1), UNKNOWN),
    ],
)
def test_only_a_scheduler_that_answers_can_report_gone(
    recorded: Recorder, squeue: tuple[str, str, int], sacct: tuple[str, str, int], expected: object
) -> None:
    answer = Slurm(recorded(squeue=squeue, sacct=sacct)).jobs(["6"])["6"]
    assert (answer.state if isinstance(answer, JobFacts) else answer) == expected


def test_a_recorded_job_that_runs_is_unknown_while_the_controller_is_silent(recorded: Recorder) -> None:
    slurm = Slurm(recorded(squeue=("", CONTROLLER_DOWN, 1), sacct=(SACCT, "", 0)))
    assert slurm.jobs(["2"]) == {"2": UNKNOWN}
    recorded(squeue=("", "", 0))
    assert slurm.jobs(["2"]) == {"2": GONE}  # the controller would know it
    recorded(squeue=("", CONTROLLER_DOWN, 1))
    assert slurm.find("crossfed-7f3a") is None and slurm.mine("debug") is None


def test_live_jobs_are_found_by_name_partition_and_qos(recorded: Recorder) -> None:
    slurm = Slurm(recorded(squeue=(SQUEUE, "", 0)))
    assert [job.job_id for job in slurm.find("7f3a") or ()] == ["2"]
    assert [job.job_id for job in slurm.mine("debug") or ()] == ["3", "5", "2"]
    assert [job.job_id for job in slurm.mine("short") or ()] == ["5"]


@pytest.mark.parametrize(("status", "code"), [(0, 0), (768, 3), (9, 137), (15, 143)])
def test_wait_status(status: int, code: int) -> None:
    assert wait_status(status) == code


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_durations_are_seconds(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert duration_s(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == expected
    assert duration_s(f"{days * 24 + hours}:{minutes:02d}:{seconds:02d}") == expected


@pytest.mark.parametrize("text", ["UNLIMITED", "INVALID", "", "Partition_Limit"])
def test_text_is_not_a_duration(text: str) -> None:
    assert duration_s(text) is None


def test_a_slow_or_missing_command_is_no_answer(recorded: Recorder, tmp_path: Path) -> None:
    environment = recorded(squeue=("", "", 0))
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    assert Slurm(environment, limit_s=0.2).find("x") is None
    assert Slurm(environment, limit_s=0.2).jobs(["1"]) == {"1": UNKNOWN}
    reply = ask(["nosuchcommand"], environment)
    assert reply.code is None and reply.message == "nosuchcommand cannot be run: No such file or directory"


def test_a_failed_cancellation_is_reported(recorded: Recorder) -> None:
    environment = recorded(scancel=("", "scancel: error: Kill job error", 1), qdel=("", "Connection refused", 111))
    assert Slurm(environment).cancel(["1", "2"]) == ["1", "2"] and Slurm(environment).cancel([]) == []
    assert Pbs(environment).cancel(["1.pbs"]) == ["1.pbs"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("State=UP", None),
        ("State=DOWN", "starts none"),
        ("State=DRAIN", "takes no jobs"),
        ("State=INACTIVE", "inactive"),
    ],
)
def test_partition_states(recorded: Recorder, line: str, text: str | None) -> None:
    environment = recorded(scontrol=(f"PartitionName=debug MaxTime=01:00:00 {line} TotalNodes=2", "", 0))
    problem = Slurm(environment).queue_problem("debug")
    assert problem is None if text is None else problem is not None and text in problem


def test_a_queue_may_be_a_qos_or_nothing(recorded: Recorder) -> None:
    environment = recorded(scontrol=("", "Partition regular not found", 1), sacctmgr=("regular\n", "", 0))
    assert Slurm(environment).queue_problem("regular") is None
    recorded(sacctmgr=("", "", 0))
    assert Slurm(environment).queue_problem("regular") == "there is no partition or QOS regular"


# ---------------------------------------------------------------- PBS


def test_a_finished_job_ends_when_its_walltime_was_used() -> None:
    job = job_facts("7.pbs-01", PBS_JOB)
    assert isinstance(job, JobFacts)
    assert (job.state, job.exit_code, job.nodes, job.walltime_s) == ("completed", 0, 2, 3600)
    assert (job.started, job.ended) == (STARTED, STARTED + 605)
    assert job.submitted == STARTED - 262


@pytest.mark.parametrize(
    ("changes", "state", "code"),
    [
        ({"Exit_status": 3, "substate": 93}, "failed", 3),
        ({"Exit_status": -29, "substate": 93}, "timeout", None),
        ({"Exit_status": 271, "comment": "Job run at .. and exceeded resource walltime"}, "timeout", 143),
        ({"Exit_status": 271, "substate": 91, "comment": "and terminated"}, "cancelled", 143),
        ({"Exit_status": 0, "substate": 91, "comment": "and terminated"}, "cancelled", 0),
        ({"Exit_status": None, "substate": 91, "comment": "Not Running: ..."}, "cancelled", None),
        ({"Exit_status": -27}, "out_of_memory", None),
        ({"Exit_status": 265}, "failed", 137),
        ({"Exit_status": 271, "comment": "Job preempted by deletion"}, "preempted", 143),
    ],
)
def test_endings_of_a_pbs_job(changes: dict[str, Any], state: str, code: int | None) -> None:
    attributes = {k: v for k, v in {**PBS_JOB, **changes}.items() if v is not None}
    job = job_facts("7.pbs-01", attributes)
    assert isinstance(job, JobFacts) and (job.state, job.exit_code) == (state, code)


@pytest.mark.parametrize(("letter", "state"), [("Q", "pending"), ("H", "pending"), ("R", "running"), ("E", "running")])
def test_live_states_of_a_pbs_job(letter: str, state: str) -> None:
    attributes = {k: v for k, v in PBS_JOB.items() if k not in ("Exit_status", "stime")}
    job = job_facts("7", {**attributes, "job_state": letter})
    assert isinstance(job, JobFacts) and (job.state, job.ended, job.exit_code) == (state, None, None)


def test_a_held_pbs_job_says_so() -> None:
    attributes = {k: v for k, v in PBS_JOB.items() if k not in ("Exit_status", "stime", "comment")}
    job = job_facts("7", {**attributes, "job_state": "H"})
    assert isinstance(job, JobFacts) and job.reason == "Job held"


def test_a_job_that_moved_to_another_server_is_unknown() -> None:
    assert job_facts("7.pbs-01", {**PBS_JOB, "job_state": "M"}) is UNKNOWN


@pytest.mark.parametrize(
    ("qstat", "expected"),
    [
        ((pbs_answer(("7.pbs-01.example.org", PBS_JOB)), "", 0), "completed"),  # a server's longer name
        ((pbs_answer(("7.pbs-01", PBS_JOB)), "qstat: Unknown Job Id 8.pbs-01", 153), "completed"),
        ((pbs_answer(), "qstat: Unknown Job Id 7.pbs-01", 153), GONE),
        ((pbs_answer(), "", 0), UNKNOWN),
        ((pbs_answer(("8.pbs-01", PBS_JOB)), "", 0), UNKNOWN),  # only the first of several, and not ours
        (("", "qstat: cannot connect to server pbs-01 (errno=111)", 111), UNKNOWN),
        (('{"Jobs": {"7.pbs-01": {"Variable_List": "', "", 0), UNKNOWN),
    ],
)
def test_pbs_answers_to_one_query(recorded: Recorder, qstat: tuple[str, str, int], expected: object) -> None:
    answer = scheduler_for("pbs", recorded(qstat=qstat)).jobs(["7.pbs-01"])["7.pbs-01"]
    assert (answer.state if isinstance(answer, JobFacts) else answer) == expected


def test_a_pbs_server_without_answer_may_have_jobs(recorded: Recorder) -> None:
    refused = ("", "qselect: cannot connect to server pbs-01 (errno=111)", 111)
    pbs = Pbs(recorded(qselect=refused, qstat=("", "Connection refused", 111)))
    assert pbs.find("x") is None and pbs.mine("debug") is None
    recorded(qselect=("7.pbs-01\n", "", 0))
    assert pbs.find("x") is None


def test_jobs_of_a_routing_queue_are_in_its_destinations(recorded: Recorder) -> None:
    live = {**PBS_JOB, "job_state": "R", "queue": "small"}
    queue = {
        "prod": {"queue_type": "Route", "route_destinations": "small,medium", "enabled": "True", "started": "True"}
    }
    both = json.dumps({"Queue": queue, "Jobs": {"7.pbs-01": live}})
    pbs = Pbs(recorded(qselect=("7.pbs-01\n", "", 0), qstat=(both, "", 0)))
    assert [job.job_id for job in pbs.mine("prod") or ()] == ["7.pbs-01"]
    assert pbs.mine("debug") == [] and pbs.queue_problem("prod") is None and pbs.account_problem("any") is None

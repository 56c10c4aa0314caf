"""Tests that the PBS machine of the tests answers as OpenPBS does, and that its faults can be injected."""

from __future__ import annotations

import getpass
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from facilities.daemons import FacilityError, processes_of
from facilities.pbs import PbsFacility, PbsQueue, PbsRules, pbs_facility
from facilities.pbs_contract import Machine, answers

pytestmark = pytest.mark.slurm

ANSWERS = Path(__file__).with_name("openpbs_answers.txt")
QUEUES = (
    PbsQueue("debug", default_walltime_s=600, max_walltime_s=3600, max_nodes=2, running_per_user=1, queued_per_user=2),
    PbsQueue("prod", min_nodes=2, max_walltime_s=21_600),
)
RULES = PbsRules(systems=("polaris",), filesystems=("home", "eagle"), accounts=("fusion",))
ONE_NODE = ("-A", "fusion", "-q", "debug", "-l", "select=1:ncpus=1")


@pytest.fixture(scope="module")
def machine(short_root: Path) -> Iterator[PbsFacility]:
    with pbs_facility(short_root, "contract", QUEUES, nodes=4, rules=RULES) as facility:
        yield facility
    assert processes_of(short_root / "contract") == []


@pytest.fixture
def pbs(machine: PbsFacility) -> Iterator[PbsFacility]:
    yield machine
    machine.cluster.clear()


def test_answers_are_those_of_openpbs(pbs: PbsFacility, tmp_path: Path) -> None:
    pbs.write_policy(require=("account", "filesystems"))
    try:
        assert list(answers(Machine(tmp_path, pbs.environment))) == ANSWERS.read_text().splitlines()
    finally:
        pbs.write_policy(require=())


def test_an_account_that_is_not_ours_is_refused(pbs: PbsFacility) -> None:
    with pytest.raises(FacilityError, match="exit 210: qsub: Invalid account"):
        pbs.submit("true", "-A", "weather", "-q", "debug")


def test_submissions_are_refused_as_often_as_set(pbs: PbsFacility) -> None:
    pbs.refuse_submissions(2, "Job rejected by all possible destinations")
    for _ in range(2):
        with pytest.raises(FacilityError, match="Job rejected by all possible destinations"):
            pbs.submit("true", *ONE_NODE)
    assert pbs.submit("true", *ONE_NODE).endswith(f".{RULES.server}")


def test_a_lost_answer_leaves_a_job_that_can_be_found(pbs: PbsFacility) -> None:
    pbs.lose_answers(1)
    with pytest.raises(FacilityError, match="cannot connect to server"):
        pbs.submit("sleep 60", *ONE_NODE, "-N", "token123")
    (found,) = pbs.run("qselect", "-u", getpass.getuser()).split()
    assert pbs.job(found)["Job_Name"] == "token123"


def test_a_preempted_job_gets_sigterm_before_it_is_killed(pbs: PbsFacility, tmp_path: Path) -> None:
    said = tmp_path / "said"
    job_id = pbs.submit(
        f"trap 'echo asked > {said}; exit 0' TERM\ntouch {said}\nwhile :; do sleep 0.1; done", *ONE_NODE
    )
    pbs.wait_for_state(job_id, "R")
    while not said.exists():
        assert pbs.job(job_id)["job_state"] == "R"
    pbs.preempt(job_id)
    pbs.wait_for_state(job_id, "F")
    assert said.read_text() == "asked\n" and "preemption" in pbs.job(job_id)["comment"]


def test_a_stopped_server_does_not_answer(pbs: PbsFacility) -> None:
    pbs.stop_server()
    try:
        with pytest.raises(FacilityError, match="exit 111: Connection refused\nqstat: cannot connect to server"):
            pbs.run("qstat")
    finally:
        pbs.start_server()
    assert pbs.run("qstat") == ""


def test_queues_report_their_limits_and_state(pbs: PbsFacility) -> None:
    pbs.set_queue("prod", enabled=False)
    try:
        queues = json.loads(pbs.run("qstat", "-Q", "-f", "-F", "json"))["Queue"]
        with pytest.raises(FacilityError, match="Queue is not enabled"):
            pbs.submit("true", "-A", "fusion", "-q", "prod", "-l", "select=2:ncpus=1")
    finally:
        pbs.set_queue("prod")
    assert queues["debug"]["max_run"] == "[u:PBS_GENERIC=1]" and queues["debug"]["enabled"] == "True"
    assert queues["prod"]["enabled"] == "False" and queues["prod"]["resources_max"] == {"walltime": "06:00:00"}


def test_a_queue_that_is_not_started_takes_jobs_and_lets_them_wait(pbs: PbsFacility) -> None:
    pbs.set_queue("debug", started=False)
    try:
        job_id = pbs.submit("true", *ONE_NODE)
        assert pbs.job(job_id)["job_state"] == "Q"
    finally:
        pbs.set_queue("debug")
    pbs.wait_for_state(job_id, "F")


def test_ranks_start_on_the_hosts_of_the_job(pbs: PbsFacility, tmp_path: Path) -> None:
    rank = 'echo "$SLURMD_NODENAME $PMI_RANK" >> ' + str(tmp_path / "ranks")
    script = f"mpiexec -n 4 --ppn 2 --hosts $(paste -sd, $PBS_NODEFILE) sh -c '{rank}'"
    job_id = pbs.submit(script, "-A", "fusion", "-q", "prod", "-l", "select=2:ncpus=2")
    pbs.wait_for_state(job_id, "F")
    nodes = [line.split()[0] for line in (tmp_path / "ranks").read_text().splitlines()]
    assert sorted(nodes) == ["contract1", "contract1", "contract2", "contract2"]


def test_one_unknown_id_spoils_the_exit_code_but_not_the_answer(pbs: PbsFacility) -> None:
    job_id = pbs.submit("true", *ONE_NODE)
    path = str(pbs.home.root / "bin" / "qstat")
    command = [path, "-x", "-f", "-F", "json", job_id, "99999"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 153 and list(json.loads(done.stdout)["Jobs"]) == [job_id]


def test_without_history_an_ended_job_is_not_shown(pbs: PbsFacility) -> None:
    job_id = pbs.submit("true", *ONE_NODE)
    pbs.wait_for_state(job_id, "F")
    pbs.write_policy(history=False)
    try:
        assert "Jobs" not in json.loads(pbs.run("qstat", "-x", "-f", "-F", "json", job_id))
    finally:
        pbs.write_policy(history=True)

"""Probes: as many as were asked for and the queue admits, all recorded, none left behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.providers.errors import SubmitException

from apps.base.errors import UserMistake
from workflows import queue_study
from workflows.records.queue_history import read_history
from workflows.studies.queues import probe as queue_probe


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.csv"
    monkeypatch.setenv("CROSSFED_HISTORY", str(path))
    monkeypatch.chdir(tmp_path)
    return path


# A site file whose provider is a batch queue in a JSON file: what it does to each job, in the order of submission.
SITE = """
from datetime import date
from pathlib import Path
from site_configs.library.site import Block, Queue, Site
from test_queue_probe import ToyProvider

def site(name: str, run_dir: Path, *, nodes: int, walltime: int, limit: int | None = None, fate: str = "run") -> Site:
    queue = Queue("debug", 1, 4, 3600, date(2026, 8, 1), "a test", queued_per_user=limit)
    block = Block("slurm", queue, nodes, walltime)
    return Site(name=name, machine="toy", route="batch", storage_root=run_dir, block=block,
                provider=lambda worker_init: ToyProvider(fate))
"""


class ToyProvider:
    """A provider whose jobs start at the first status query; ``stay`` keeps them waiting, ``refuse`` accepts none."""

    def __init__(self, fate: str) -> None:
        self.fate, self.script_dir = fate, ""
        self.commands: dict[str, str] = {}

    def note(self, word: str) -> None:
        with open(Path(self.script_dir) / "calls.jsonl", "a") as stream:
            stream.write(json.dumps(word) + "\n")

    def submit(self, command: str, _tasks_per_node: int, _job_name: str = "") -> str:
        if self.fate == "refuse":
            raise SubmitException("toy", "no such account")
        self.note("submit")
        job_id = str((Path(self.script_dir) / "calls.jsonl").read_text().count("submit"))
        self.commands[job_id] = command
        return job_id

    def status(self, job_ids: list[str]) -> list[JobStatus]:
        if self.fate == "stay":
            return [JobStatus(JobState.PENDING)]
        self.note("run")
        if self.fate == "run":
            subprocess.run(["bash", "-c", self.commands[job_ids[0]]], check=True)
        return [JobStatus(JobState.FAILED if self.fate == "break" else JobState.COMPLETED)]

    def cancel(self, _job_ids: list[str]) -> list[bool]:
        self.note("cancel")
        return [True]


@pytest.fixture
def toy(history: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    assert not history.exists()
    monkeypatch.setattr(queue_probe, "FIRST_POLL_S", 0.01)
    monkeypatch.setattr(queue_probe, "scheduler_start", lambda _: None)
    monkeypatch.setitem(sys.modules, "test_queue_probe", sys.modules[__name__])
    Path("toy.py").write_text(SITE)
    return "toy.py"


def calls() -> list[str]:
    [path] = Path("queue_study/probes").glob("*/calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_probes_are_submitted_recorded_and_studied(toy: str, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["--probe-nodes", "1,2", "--probe-walltimes", "10m,1h"]
    assert queue_study.main(["--probe", toy, *shapes, "--probes", "5", "--yes"]) == 0
    found = read_history(history)
    assert [(r.nodes, r.walltime_s) for r in found] == [(1, 600), (1, 3600), (2, 600), (2, 3600), (1, 600)]
    assert all(0 <= r.started - r.submitted <= r.ended - r.submitted for r in found)  # type: ignore[operator]
    assert {(r.machine, r.site, r.campaign, r.scheduler, r.queue, r.state) for r in found} == {
        ("toy", "toy", "probe", "slurm", "debug", "COMPLETED")
    }
    assert history.read_text().count("\n") == 1 + 2 * 5  # told at submission, so that a crash loses none
    out = capsys.readouterr().out
    assert "2 probes at toy (toy), queue debug: 1 node for 10 min" in out and "5 jobs submitted from" in out
    assert calls() == ["submit"] * 5 + ["run"] * 5


def test_no_more_probes_are_queued_at_once_than_the_queue_admits(toy: str) -> None:
    assert queue_study.main(["--probe", toy, "--probes", "3", "--set", "limit=1", "--yes"]) == 0
    assert calls() == ["submit", "run"] * 3


def test_probes_that_do_not_start_in_time_are_cancelled_and_counted(
    toy: str, history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--probe", toy, "--probes", "3", "--set", "limit=2", "--set", "toy.fate=stay"]
    assert queue_study.main([*arguments, "--timeout", "1s", "--yes"]) == 0
    assert calls() == ["submit", "submit", "cancel", "cancel"]
    assert [(r.started, r.state) for r in read_history(history)] == [(None, "CANCELLED")] * 2
    out = capsys.readouterr().out
    assert out.count(": not started after") == 2 and "1 probe not submitted: the queue's rule" in out


def test_an_interrupt_leaves_no_job_behind(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue_probe.time, "sleep", interrupt)
    assert queue_study.main(["--probe", toy, "--set", "fate=stay", "--yes"]) == 130
    assert calls() == ["submit", "cancel"]


@pytest.mark.parametrize("known", [None, 4e9])
def test_the_start_of_a_broken_probe_comes_from_the_scheduler(
    toy: str, history: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, known: float | None
) -> None:
    monkeypatch.setattr(queue_probe, "scheduler_start", lambda _: known)
    assert queue_study.main(["--probe", toy, "--set", "fate=break", "--yes"]) == 0
    [record] = read_history(history)
    assert (record.state, record.started) == ("FAILED", known)
    assert ("its wait is not counted" in caplog.text) == (known is None)


def test_probes_that_are_refused_fail_the_command(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert queue_study.main(["--probe", toy, "--set", "fate=refuse", "--yes"]) == 1
    assert "no probe was accepted by a scheduler" in capsys.readouterr().err


def test_without_consent_nothing_is_submitted(
    toy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert queue_study.main(["--probe", toy]) == 2
    assert "nothing was submitted. Add --yes to submit them" in capsys.readouterr().err
    assert not Path("queue_study").exists()


@pytest.mark.parametrize(("answer", "taken"), [("y", True), ("Yes", True), ("", False), ("n", False)])
def test_the_user_is_asked(answer: str, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if taken:
        queue_probe.ask_consent()
    else:
        with pytest.raises(UserMistake, match="nothing was submitted"):
            queue_probe.ask_consent()


def settings(**values: Any) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.slurm
def test_probes_of_a_slurm_cluster_and_its_own_accounting(
    slurm_site: Any, history: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from facilities.daemons import wait_until

    chosen = settings(
        storage_root=str(history.parent),
        partition="regular",
        account="fusion",
        command_environment=dict(slurm_site.environment),
    )
    shapes = ["--probe-nodes", "1,2", "--probe-walltimes", "5m"]
    assert queue_study.main(["--probe", "alpha=slurm", *shapes, *chosen, "--timeout", "60s", "--yes"]) == 0
    found = read_history(history)
    assert [(r.machine, r.queue, r.nodes, r.walltime_s, r.state) for r in found] == [
        ("alpha", "regular", 1, 300, "COMPLETED"),
        ("alpha", "regular", 2, 300, "COMPLETED"),
    ]
    for name, value in slurm_site.environment.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    own = {r.job_id: r for r in found}
    sacct = ("sacct", "-X", "-n", f"--jobs={','.join(own)}")  # the cluster has other tests' jobs as well
    # the accounting knows of a job's start seconds later than of its end
    wait_until("both jobs in sacct", lambda: slurm_site.run(*sacct).count("regular") == len(own))
    assert queue_study.main(["--from", "sacct"]) == 0
    assert "jobs submitted from" in capsys.readouterr().out
    rows = slurm_site.run(*sacct, "-P", "--format=JobIDRaw,NNodes,TimelimitRaw").splitlines()
    told = {job: (int(nodes), 60 * int(minutes)) for job, nodes, minutes in (row.split("|") for row in rows)}
    assert {job: told[job] for job in own} == {job: (r.nodes, r.walltime_s) for job, r in own.items()}


@pytest.mark.slurm
def test_a_probe_that_cannot_start_is_cancelled_at_the_cluster(slurm_site: Any, history: Path) -> None:
    slurm_site.set_partition("debug", "down")
    chosen = settings(
        storage_root=str(history.parent), partition="debug", command_environment=dict(slurm_site.environment)
    )
    try:
        assert queue_study.main(["--probe", "alpha=slurm", *chosen, "--timeout", "2s", "--yes"]) == 0
    finally:
        slurm_site.set_partition("debug", "up")
    [record] = read_history(history)
    assert (record.started, record.state) == (None, "CANCELLED")
    assert slurm_site.jobs()[record.job_id].state.startswith("CANCELLED")


@pytest.mark.slurm
def test_probes_of_a_pbs_facility(pbs_site: Any, history: Path) -> None:
    chosen = settings(
        storage_root=str(history.parent),
        queue="debug",
        account="fusion",
        command_environment=dict(pbs_site.environment),
        options=["-l filesystems=home:eagle", "-l place=scatter"],
    )
    assert queue_study.main(["--probe", "alcf=pbs", *chosen, "--timeout", "60s", "--yes"]) == 0
    [record] = read_history(history)
    assert (record.machine, record.scheduler, record.queue, record.nodes) == ("alcf", "pbs", "debug", 1)
    assert record.state == "COMPLETED" and record.started is not None and record.started < record.ended  # type: ignore[operator]

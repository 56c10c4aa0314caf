"""Tests of the providers with scripted schedulers: refusals, missing and partial answers, lost submissions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState
from parsl.providers import PBSProProvider, SlurmProvider
from parsl.providers.errors import SubmitException

from site_configs.library.providers import PbsBlocks, SlurmBlocks
from site_configs.library.schedulers import GONE, UNKNOWN, Answer, JobFacts
from site_configs.library.site import Block, Queue
from site_configs.library.status_provider import StatusAwareProvider

QUEUE = Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide")
Reply = Callable[..., None]


@dataclass
class ScriptedScheduler:
    """A scheduler with given answers that records its queries."""

    answers: dict[str, Answer] = field(default_factory=dict)
    named: list[JobFacts] | None = field(default_factory=list)
    not_cancelled: list[str] = field(default_factory=list)
    queries: list[tuple[str, Any]] = field(default_factory=list)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        self.queries.append(("jobs", list(ids)))
        return {job_id: self.answers.get(job_id, UNKNOWN) for job_id in ids}

    def find(self, token: str) -> list[JobFacts] | None:
        self.queries.append(("find", token))
        return self.named

    def cancel(self, ids: Sequence[str]) -> list[str]:
        self.queries.append(("cancel", list(ids)))
        return [job_id for job_id in ids if job_id in self.not_cancelled]


def facts(job_id: str, state: Any, reason: str = "") -> JobFacts:
    return JobFacts(job_id, "cf", state, None, None, None, 2, "small", None, reason, 5400)


@pytest.fixture
def reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reply:
    """Return a function that puts a command on PATH which records its call and environment and prints one answer."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=":")

    def make(command: str, out: str = "", error: str = "", code: int = 0, sleep_s: float = 0) -> None:
        program = programs / command
        program.write_bytes(
            f'#!/bin/bash\necho "{command} $*" >> {tmp_path}/calls\nenv > {tmp_path}/environment\n'
            f"sleep {sleep_s}\nprintf '%s' '{out}'\nprintf '%s' '{error}' >&2\n"
            f"touch {tmp_path}/finished\nexit {code}\n".encode("latin-1")
        )
        program.chmod(0o755)

    return make


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def make(kind: type[StatusAwareProvider], folder: Path, **settings: Any) -> Any:
    scheduler: Any = "slurm" if kind is SlurmBlocks else "pbs"
    block = Block(scheduler, QUEUE, 2, 5400, "ABC", command_environment={"HERE": "a b"})
    provider = kind(block, directives=("-x 1",), worker_init="export A=1\n", job_prefix="cf-12ab-site", **settings)
    provider.scheduler = ScriptedScheduler()
    provider.script_dir = str(folder)
    return provider


def submit_command(kind: Any) -> str:
    return "sbatch" if issubclass(kind, SlurmBlocks) else "qsub"


def scripts(folder: Path) -> list[Path]:
    """Return the submitted scripts; Parsl names them by prefix, a unique end and the time."""
    return [path for path in folder.glob("cf-12ab-site-*") if not path.name.endswith(("stdout", "stderr"))]


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    return make(SlurmBlocks, tmp_path)


@pytest.fixture
def pbs(tmp_path: Path) -> Any:
    return make(PbsBlocks, tmp_path)


def submitted(provider: Any, reply: Reply, out: str) -> str:
    reply(submit_command(type(provider)), out)
    return provider.submit("pool", 1, "parsl.site.block-0")


def test_providers_are_parsls_and_rendering_runs_no_query(slurm: Any, pbs: Any) -> None:
    assert isinstance(slurm, SlurmProvider) and isinstance(pbs, PBSProProvider)
    lines = slurm.render("pool --here").splitlines()
    assert lines[2:10] == [
        "#SBATCH --job-name=cf-12ab-site-NUMBER",
        f"#SBATCH --output={slurm.script_dir}/cf-12ab-site-NUMBER.stdout",
        f"#SBATCH --error={slurm.script_dir}/cf-12ab-site-NUMBER.stderr",
        "#SBATCH --nodes=2",
        "#SBATCH --time=90",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH -x 1",
        "#SBATCH --account=ABC",
    ]
    assert "export A=1" in lines and "pool --here" in lines
    assert lines[-1] == f"# submitted with: sbatch {slurm.script_dir}/cf-12ab-site-NUMBER"
    script = pbs.render("pool")
    assert "#PBS -l walltime=1:30:00" in script and "#PBS -l select=2:ncpus=1\n" in script
    assert script.endswith(f"# submitted with: qsub  -q small -A ABC {pbs.script_dir}/cf-12ab-site-NUMBER\n")
    assert (slurm.init_blocks, slurm.min_blocks, slurm.max_blocks, slurm.nodes_per_block) == (0, 0, 1, 2)
    assert slurm.scheduler.queries == pbs.scheduler.queries == [] and slurm.resources == {}


def test_the_poll_interval_is_settable_and_has_a_floor(tmp_path: Path) -> None:
    intervals = [make(SlurmBlocks, tmp_path, poll_s=seconds).status_polling_interval for seconds in (0, 5, 60)]
    assert intervals == [1, 5, 60]


def test_what_is_submitted_is_what_is_rendered(slurm: Any, reply: Reply, tmp_path: Path) -> None:
    assert submitted(slurm, reply, "Submitted batch job 4711\n") == "4711"
    (script,) = scripts(tmp_path)
    rendered = slurm.render("pool").replace("cf-12ab-site-NUMBER", script.name)
    assert script.read_text().split() == rendered.partition("# submitted")[0].split()
    assert calls(tmp_path) == [f"sbatch {script}"]
    assert slurm.resources["4711"]["status"].state is JobState.PENDING
    assert submitted(slurm, reply, "Submitted batch job 4712\n") == "4712"
    assert len(scripts(tmp_path)) == 2  # names are not used twice


def test_commands_see_the_blocks_environment_and_none_of_an_outer_job(
    slurm: Any, reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SBATCH_ACCOUNT", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "outer")
    submitted(slurm, reply, "Submitted batch job 1\n")
    seen = (tmp_path / "environment").read_text().splitlines()
    assert "HERE=a b" in seen and "SLURM_CONF=outer" in seen
    assert not [line for line in seen if line.startswith(("SBATCH_", "SLURM_JOB_ID", "SLURM_CPUS"))]


@pytest.mark.parametrize("kind", [SlurmBlocks, PbsBlocks])
def test_a_refusal_has_the_schedulers_message(kind: Any, tmp_path: Path, reply: Reply) -> None:
    provider = make(kind, tmp_path)
    reply(submit_command(kind), error="Job violates accounting/QOS policy", code=1)
    with pytest.raises(SubmitException, match="Job violates accounting/QOS policy"):
        provider.submit("pool", 1)
    assert provider.resources == {} and provider._lost == {}


@pytest.mark.parametrize("kind", [SlurmBlocks, PbsBlocks])
def test_a_missing_command_is_no_lost_submission(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = make(kind, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        with pytest.raises(SubmitException, match=f"{submit_command(kind)} cannot be run: No such file"):
            provider.submit("pool", 1)
    assert provider._lost == {} and provider.scheduler.queries == []


def test_lines_that_qsub_prints_beside_the_id_are_no_jobs(pbs: Any, reply: Reply) -> None:
    assert submitted(pbs, reply, "Project ABC has 12 hours left\n4711.pbs-01\nsee https://pbs\n") == "4711.pbs-01"
    assert list(pbs.resources) == ["4711.pbs-01"]


def test_a_notice_before_slurms_answer(slurm: Any, reply: Reply) -> None:
    assert submitted(slurm, reply, "-- Welcome --\nSubmitted batch job 4711\n") == "4711"


def test_an_answer_that_is_no_utf8(slurm: Any, reply: Reply) -> None:
    assert submitted(slurm, reply, "Gr\xfc\xdfe\nSubmitted batch job 4711\n") == "4711"


@pytest.mark.parametrize("kind", [SlurmBlocks, PbsBlocks])
@pytest.mark.parametrize("answer", [{"code": 1}, {"code": 0}, {"sleep_s": 30}])
def test_a_submission_whose_answer_is_lost_is_found_by_its_name(
    kind: Any, answer: dict, tmp_path: Path, reply: Reply
) -> None:
    provider = make(kind, tmp_path, command_timeout_s=1)
    reply(submit_command(kind), **answer)
    provider.scheduler.named = [facts("99", "pending")]
    assert provider.submit("pool", 1) == "99"
    (script,) = scripts(tmp_path)
    assert provider.scheduler.queries == [("find", script.name.split(".")[0])] and len(calls(tmp_path)) == 1


def test_a_job_that_appears_late_is_ended_before_another_is_submitted(slurm: Any, reply: Reply, tmp_path: Path) -> None:
    reply("sbatch", error="Socket timed out on send/recv operation", code=1)
    slurm.scheduler.named = None
    with pytest.raises(SubmitException, match="Socket timed out"):
        slurm.submit("pool", 1)
    with pytest.raises(SubmitException, match="does not answer whether it accepted this earlier job"):
        slurm.submit("pool", 1)
    assert len(calls(tmp_path)) == 1
    slurm.scheduler.named = [facts("50", "pending")]
    assert submitted(slurm, reply, "Submitted batch job 51\n") == "51"
    assert ("cancel", ["50"]) in slurm.scheduler.queries and slurm._lost == {}


def test_an_unanswered_submission_is_searched_for_a_while(slurm: Any, reply: Reply) -> None:
    slurm.cmd_timeout = 1
    reply("sbatch", sleep_s=30)
    with pytest.raises(SubmitException, match="did not answer in 1 s"):
        slurm.submit("pool", 1)
    submitted(slurm, reply, "Submitted batch job 1\n")
    assert len(slurm._lost) == 1
    slurm._lost = dict.fromkeys(slurm._lost, -1e9)
    submitted(slurm, reply, "Submitted batch job 2\n")
    assert slurm._lost == {}


def test_a_command_that_hangs_is_ended(slurm: Any, reply: Reply, tmp_path: Path) -> None:
    reply("sbatch", "1", sleep_s=5)
    assert slurm.execute_wait("sbatch x", timeout=1) == (124, "", "sbatch did not answer in 1 s")
    assert not (tmp_path / "finished").exists() and calls(tmp_path) == ["sbatch x"]


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ("pending", "PENDING"),
        ("running", "RUNNING"),
        ("completed", "COMPLETED"),
        ("failed", "FAILED"),
        ("node_fail", "FAILED"),
        ("out_of_memory", "FAILED"),
        ("cancelled", "CANCELLED"),
        ("timeout", "TIMEOUT"),
        ("preempted", "TIMEOUT"),
    ],
)
def test_parsl_gets_the_state(slurm: Any, reply: Reply, state: str, seen: str) -> None:
    job_id = submitted(slurm, reply, "Submitted batch job 7\n")
    slurm.scheduler.answers["7"] = facts("7", state, "QOSMaxJobs")
    (status,) = slurm.status([job_id])
    assert (status.state.name, status.message) == (seen, f"{state} QOSMaxJobs")
    assert Path(status.stderr_path).name.startswith("cf-12ab-site-") and status.stdout_path.endswith(".stdout")


def test_a_failed_query_is_not_an_end_and_an_unknown_job_is(pbs: Any, reply: Reply) -> None:
    job_id = submitted(pbs, reply, "7.server")
    expected: list[tuple[Answer, str]] = [
        (UNKNOWN, "PENDING"),
        (facts(job_id, "running"), "RUNNING"),
        (UNKNOWN, "RUNNING"),
        (GONE, "COMPLETED"),
    ]
    for answer, seen in expected:
        pbs.scheduler.answers[job_id] = answer
        assert pbs.status([job_id])[0].state.name == seen
    assert pbs.status([job_id])[0].message == "the scheduler no longer knows this job"


def test_an_ended_job_is_not_queried_again(slurm: Any, reply: Reply) -> None:
    ids = [submitted(slurm, reply, "Submitted batch job 7\n"), submitted(slurm, reply, "Submitted batch job 8\n")]
    slurm.scheduler.answers = {"7": facts("7", "failed"), "8": facts("8", "running")}
    assert [status.state for status in slurm.status(ids)] == [JobState.FAILED, JobState.RUNNING]
    slurm.scheduler.answers["7"] = facts("7", "running")
    assert slurm.status(ids)[0].state is JobState.FAILED
    assert [what for what in slurm.scheduler.queries if what[0] == "jobs"] == [("jobs", ["7", "8"]), ("jobs", ["8"])]


def test_cancelling_nothing_runs_no_query(slurm: Any) -> None:
    assert slurm.cancel([]) == [] and slurm.scheduler.queries == []


def test_only_accepted_cancellations_are_cancelled(slurm: Any, reply: Reply) -> None:
    ids = [submitted(slurm, reply, "Submitted batch job 7\n"), submitted(slurm, reply, "Submitted batch job 8\n")]
    slurm.scheduler.not_cancelled = ["8"]
    assert slurm.cancel(ids) == [True, False]
    assert [slurm.resources[job_id]["status"].state for job_id in ids] == [JobState.CANCELLED, JobState.PENDING]
    assert slurm.cancel(["unknown-id"]) == [True]


def test_each_scheduler_is_the_blocks_own() -> None:
    block = Block("pbs", QUEUE, 1, 60, command_environment={"PBS_SERVER": "one"})
    asked: Any = PbsBlocks(block).scheduler
    assert asked.scheduler.environment == {"PBS_SERVER": "one"}

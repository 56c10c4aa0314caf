"""How Parsl is set up for the sites of a run, and what the run does with their blocks and executors afterwards."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl import python_app
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors.errors import BadStateException
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers.base import Launcher
from parsl_kernel import genuine_kernel
from patience import patience

from apps.base.errors import UserMistake
from apps.base.own_packages import ROOT
from site_configs.library import status_provider
from site_configs.library.machine import block_provider
from site_configs.library.schedulers import GONE
from site_configs.library.site import Block, Queue, Site
from site_configs.library.status_provider import SETTLE_S
from site_configs.local import site as local_site
from workflows.planning.labels import LONGEST_DRAIN_S
from workflows.records.failed_blocks import BlockFailure
from workflows.runtime import block_failures
from workflows.runtime import executors as executors_module
from workflows.runtime import kernel as kernel_module
from workflows.runtime.block_failures import MOST_FAILURES, BlockFailureHandler, BlocksFailed
from workflows.runtime.executors import (
    drain_s,
    driver_address,
    job_prefix,
    launch_command,
    make_config,
    make_executor,
)
from workflows.runtime.kernel import IDLE_S, Kernel, root_cause
from workflows.runtime.orphans import TOKEN_VARIABLE
from workflows.runtime.worker_start import worker_init

QUEUE = Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide")
BLOCK = Block("slurm", QUEUE, 4, 5400, "ABC")
PATIENCE = BlockFailureHandler(lambda site, failure: None)


def batch_site(folder: Path, **changes: Any) -> Site:
    provider = block_provider(BLOCK, (), site="alpha", poll_s=7)
    made = dataclasses.replace(local_site("alpha", folder), block=BLOCK, route="batch", provider=provider)
    return dataclasses.replace(made, **{"heartbeat_s": 30, **changes})


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef")
    return "0123456789abcdef"


# -- the worker's start lines -----------------------------------------------------------------------------------


def shell(site: Site, command: str) -> str:
    """What a command prints where the site's workers would start."""
    script = f"{worker_init(site)}\n{command}"
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": "/mine"}
    done = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_end_of_the_block_is_set_before_the_setup_takes_its_time(tmp_path: Path) -> None:
    site = batch_site(tmp_path, setup="module load pytorch")
    lines = worker_init(site).splitlines()
    assert lines[:2] == ["export CROSSFED_BLOCK_END=$(($(date +%s) + 5400))", "module load pytorch"]
    now = int(shell(batch_site(tmp_path), "echo $((CROSSFED_BLOCK_END - $(date +%s)))"))
    assert 5390 < now <= 5400


def test_a_site_without_blocks_has_no_end(tmp_path: Path) -> None:
    site = local_site("alpha", tmp_path)
    stale = {"CROSSFED_BLOCK_END": "1900000000", "SLURM_JOB_END_TIME": "1900000000", "PATH": os.environ["PATH"]}
    script = f"{worker_init(site)}\necho ${{CROSSFED_BLOCK_END-none}} ${{SLURM_JOB_END_TIME-none}}"
    assert subprocess.run(["bash", "-c", script], env=stale, capture_output=True, text=True).stdout == "none none\n"


def test_token_and_environment_reach_the_worker_word_for_word(tmp_path: Path, token: str) -> None:
    site = batch_site(tmp_path, environment={"NOTE": "a 'b' $HOME", "OMP_NUM_THREADS": "7"})
    assert shell(site, 'echo "$NOTE|$OMP_NUM_THREADS|$CROSSFED_RUN|$HF_HUB_DISABLE_TELEMETRY"') == (
        f"a 'b' $HOME|7|{token}|1"
    )


def test_the_project_and_the_drivers_python_lead_the_paths(tmp_path: Path) -> None:
    site = batch_site(tmp_path, setup="export PATH=/elsewhere:$PATH")
    assert shell(site, "command -v python") == str(Path(sys.executable).parent / "python")
    assert shell(site, "echo $PYTHONPATH") == f"{ROOT}:/mine"


def test_a_sites_own_environment_leads_instead(tmp_path: Path) -> None:
    program = tmp_path / "my env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/bash\necho theirs\n")
    program.chmod(0o755)
    assert shell(batch_site(tmp_path, python_env=tmp_path / "my env"), "python") == "theirs"


# -- where the driver is ----------------------------------------------------------------------------------------


def test_an_address_that_is_set_is_taken(tmp_path: Path) -> None:
    assert driver_address(batch_site(tmp_path, address="127.0.0.1", driver_interface="hsn99")) == "127.0.0.1"
    with pytest.raises(UserMistake, match=r"sites.alpha.address: 203.0.113.9 is not this host. Its own addresses are"):
        driver_address(batch_site(tmp_path, address="203.0.113.9"))


def test_without_address_and_interface_the_workers_try_all(tmp_path: Path) -> None:
    assert driver_address(batch_site(tmp_path, address="")) is None


def test_the_address_of_an_interface(tmp_path: Path) -> None:
    (name,) = [n for n, a in psutil.net_if_addrs().items() if any(e.address == "127.0.0.1" for e in a)]
    assert driver_address(batch_site(tmp_path, address="", driver_interface=name)) == "127.0.0.1"


def test_an_interface_that_this_host_has_not(tmp_path: Path) -> None:
    with pytest.raises(UserMistake) as raised:
        driver_address(batch_site(tmp_path, address="", driver_interface="hsn99", machine="Polaris (ALCF)"))
    assert str(raised.value).startswith("sites.alpha: this host has no network interface 'hsn99', only ")
    assert raised.value.remedy == (
        "Start on a login node of Polaris (ALCF), or set sites.alpha.address to what its nodes reach"
    )


def test_an_interface_without_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = SimpleNamespace(family=SimpleNamespace(name="AF_PACKET"), address="00:00")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"hsn0": [family]})
    with pytest.raises(UserMistake, match="sites.alpha"):
        driver_address(batch_site(tmp_path, address="", driver_interface="hsn0"))


# -- times and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("walltime_s", "last_s"), [(60, 54), (600, 540), (3000, 2700), (3600, 3300), (86_400, 86_100)])
def test_a_block_takes_no_task_in_its_last_minutes(walltime_s: int, last_s: int) -> None:
    assert drain_s(walltime_s) == last_s


@given(st.integers(1, 10**7))
def test_a_block_always_takes_tasks_for_most_of_its_time(walltime_s: int) -> None:
    assert 0.9 * walltime_s <= drain_s(walltime_s) <= walltime_s
    assert walltime_s - drain_s(walltime_s) <= LONGEST_DRAIN_S


def test_the_names_of_a_runs_jobs(tmp_path: Path, token: str) -> None:
    executor = make_executor(batch_site(tmp_path), tmp_path, PATIENCE)
    provider: Any = executor.provider
    assert job_prefix(token) == provider.job_prefix == "cf-0123456789"


# -- an executor ------------------------------------------------------------------------------------------------


def test_a_batch_sites_executor(tmp_path: Path) -> None:
    executor = make_executor(batch_site(tmp_path, address="127.0.0.1"), tmp_path, PATIENCE)
    assert (executor.label, executor.address, executor.encrypted) == ("alpha", "127.0.0.1", True)
    assert (executor.heartbeat_period, executor.heartbeat_threshold) == (30, 60)
    assert executor.drain_period == 5100 and executor.workers_per_node == 1
    assert executor.block_error_handler is PATIENCE and executor.status_polling_interval == 7
    provider: Any = executor.provider
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (0, 0, 1)
    assert executor.interchange_launch_cmd[1:3] == [
        str(ROOT / "workflows" / "runtime" / "die_with_parent.py"),
        str(tmp_path / "logs" / "interchange-alpha.log"),
    ]


def test_the_launch_command_for_people_and_nothing_left_behind(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "demo"
    words = launch_command(batch_site(tmp_path, address=""), run_dir).split()
    assert words[0] == "process_worker_pool.py" and words[words.index("-a") + 1] == "ADDRESS"
    assert {"--port=PORT", "--hb_period=30", "--hb_threshold=60", "--drain_period=5100", "--block_id=0"} <= {*words}
    assert not run_dir.exists()


def test_the_configuration_of_a_run(tmp_path: Path) -> None:
    sites = {"alpha": batch_site(tmp_path), "beta": local_site("beta", tmp_path)}
    machines = {**sites, "server-block": batch_site(tmp_path, name="server-block")}
    machines["evaluator"] = local_site("evaluator", tmp_path, threads=2)
    plan: Any = SimpleNamespace(sites=sites, machines=machines, campaign=SimpleNamespace(retries=2))
    losses: list[str] = []
    ways = (lambda error, task: 1.0), PATIENCE, (lambda site, reason: losses.append(site))
    config = make_config(plan, tmp_path / "run", BasicMemoizer(), *ways)
    executors: list[Any] = list(config.executors)
    assert [executor.label for executor in executors] == [*("alpha", "server-block", "beta", "evaluator", "server")]
    assert [type(executor).__name__ for executor in executors] == [*["SiteExecutor"] * 2, *["LocalExecutor"] * 3]
    assert len({executor.server for executor in executors[2:]}) == 1  # one process loads the libraries
    assert config.max_idletime == executors_module.IDLE_S and config.retries == 2
    assert config.usage_tracking == 0 and config.run_dir == str(tmp_path / "run" / "parsl")
    assert (tmp_path / "run" / "logs").is_dir()  # the interchanges begin with their logs


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_several_nodes_are_submitted_without_a_warning(
    scheduler: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = dataclasses.replace(BLOCK, scheduler=scheduler)
    provider: Any = block_provider(block, (), site="alpha")("")
    provider.script_dir = str(tmp_path)
    script = provider.render("pool --here")
    assert isinstance(provider.launcher, Launcher)
    assert "\npool --here\n" in script
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_job_that_the_scheduler_does_not_show_yet_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Parsl would ask for a second block beside it."""
    command(tmp_path, "sbatch", "echo Submitted batch job 7")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    provider: Any = block_provider(BLOCK, (), site="alpha")("")
    provider.script_dir, answers = str(tmp_path), {"7": GONE}
    provider.scheduler = SimpleNamespace(jobs=lambda ids: {i: answers[i] for i in ids}, find=lambda name: [])
    job_id = provider.submit("pool", 1)
    assert provider.status([job_id])[0].state is JobState.PENDING
    clock = Clock()
    clock.now = time.monotonic() + SETTLE_S
    monkeypatch.setattr(status_provider, "time", clock)
    assert provider.status([job_id])[0].state is JobState.COMPLETED


def command(folder: Path, name: str, line: str) -> None:
    """A program that does this."""
    (folder / name).write_text(f"#!/bin/bash\n{line}\n")
    (folder / name).chmod(0o755)


# -- a run's blocks and executors -------------------------------------------------------------------------------


class FakeExecutor:
    """What the kernel sees of an executor."""

    def __init__(self) -> None:
        self.tasks, self.asked, self.works = 0, 0, True
        self.status_facade = {"0": JobStatus(JobState.RUNNING)}
        self.bad_state_is_set = False
        self.executor_exception: Exception | None = None
        self.label = "alpha"
        self._result_queue_thread = SimpleNamespace(is_alive=lambda: True)

    def outstanding(self) -> int:
        return self.tasks

    def scale_in_facade(self, n: int) -> None:
        self.asked += n
        if self.works:
            self.status_facade["0"] = JobStatus(JobState.SCALED_IN)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclasses.dataclass
class Rig:
    """A kernel over one fake batch executor."""

    kernel: Kernel
    executor: FakeExecutor
    clock: Clock
    process: Any

    def after(self, seconds: float) -> int:
        """Ask for the health some time later; how often the block was given back until then."""
        self.clock.now += seconds
        self.kernel.check_health()
        return self.executor.asked


def make_rig(monkeypatch: pytest.MonkeyPatch, reuse: str) -> Rig:
    executor, clock = FakeExecutor(), Clock()
    process = SimpleNamespace(poll=lambda: None, pid=1)
    monkeypatch.setattr(kernel_module, "time", clock)
    kernel = object.__new__(Kernel)
    kernel.kernel = SimpleNamespace(executors={"alpha": executor})  # type: ignore[assignment]
    kernel.watches = {"alpha": SimpleNamespace(block=dataclasses.replace(BLOCK, reuse=reuse))}  # type: ignore[dict-item]
    kernel.busy_until, kernel.ailing = {"alpha": clock.now}, {}
    return Rig(kernel, executor, clock, process)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return make_rig(monkeypatch, "per_round")


def test_a_block_for_one_round_is_given_back_after_a_while_without_work(rig: Rig) -> None:
    assert rig.after(IDLE_S - 1) == 0
    assert rig.after(2) == 1
    assert rig.after(100) == 1  # it has ended


def test_a_block_with_work_is_kept_and_waits_anew(rig: Rig) -> None:
    rig.executor.tasks = 1
    assert rig.after(100) == 0
    rig.executor.tasks = 0
    assert rig.after(IDLE_S - 1) == 0 and rig.after(2) == 1


def test_a_waiting_block_without_work_is_given_back_too(rig: Rig) -> None:
    rig.executor.status_facade = {"0": JobStatus(JobState.COMPLETED), "1": JobStatus(JobState.PENDING)}
    assert rig.after(IDLE_S + 1) == 1


def test_without_a_block_there_is_nothing_to_give_back(rig: Rig) -> None:
    rig.executor.status_facade = {"0": JobStatus(JobState.TIMEOUT)}
    assert rig.after(100) == 0


def test_a_scheduler_that_does_not_take_it_is_asked_now_and_then(rig: Rig) -> None:
    rig.executor.works = False
    assert rig.after(IDLE_S + 1) == 1
    assert [rig.after(0.05) for _ in range(20)] == [1] * 20
    assert rig.after(IDLE_S) == 2


def test_a_pilot_block_is_kept_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_rig(monkeypatch, "pilot").after(1e6) == 0


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def test_the_tasks_of_a_site_that_was_given_up_have_its_reason(rig: Rig) -> None:
    executor: Any = rig.executor
    reason = BlocksFailed("10 blocks in a row have failed, the last: no account", site="alpha")
    executor.executor_exception = reason
    assert root_cause(failed(BadStateException(executor, reason))) is reason
    executor.executor_exception = RuntimeError("Parsl's own")
    error = BadStateException(executor, executor.executor_exception)
    assert root_cause(failed(error)) is error


@pytest.mark.campaign
def test_with_real_parsl_a_site_that_refuses_every_block_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task fails with the scheduler's words, the driver goes on, and Parsl still ends in order."""
    command(tmp_path, "sbatch", "echo 'sbatch: error: no reason is known' >&2; exit 1")
    command(tmp_path, "squeue", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(block_failures, "FIRST_WAIT_S", 0.0)
    failures: list[BlockFailure] = []
    handler = BlockFailureHandler(lambda site, failure: failures.append(failure))
    (tmp_path / "logs").mkdir()
    executor = make_executor(batch_site(tmp_path), tmp_path, handler)
    with genuine_kernel([executor], tmp_path, strategy_period=0.05) as kernel:
        future = python_app(abs, data_flow_kernel=kernel.kernel, executors=["alpha"])(-1)
        assert future.exception(timeout=patience(60)) is not None
        error = root_cause(future)
        thread: Any = executor._result_queue_thread
        thread.join(patience(30))
        assert not thread.is_alive() and kernel.dead_executors() == []
    assert str(error) == (
        f"site alpha: {MOST_FAILURES} blocks in a row have failed, the last:"
        " a block could not be submitted: sbatch: error: no reason is known"
    )
    assert failures == [BlockFailure("refused", "sbatch: error: no reason is known", 0.0)] * 9

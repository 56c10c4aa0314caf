"""One site's executor, with Parsl's genuine interchange and worker pool: replaced alone, asked briefly, held."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from parsl.executors.high_throughput.errors import VersionMismatch
from parsl.providers import LocalProvider
from parsl_kernel import genuine_kernel
from patience import patience, wait_until

from apps.base.errors import AnswerRefused, TaskError, WorkersLost
from site_configs.library.site import Block, Queue, Site
from site_configs.local import site as local_site
from workflows.runtime import site_executor as module
from workflows.runtime.block_failures import BlockFailureHandler
from workflows.runtime.executors import make_executor
from workflows.runtime.kernel import Kernel, root_cause
from workflows.runtime.orphans import TOKEN_VARIABLE, find_orphans
from workflows.runtime.retry_policy import RetryPolicy
from workflows.runtime.site_executor import OtherVersions, SiteExecutor, other_versions

# with the Slurm tests: in a test process that has loaded every library, Parsl's fork of a block's shell crashes
pytestmark = [
    pytest.mark.own_process,  # Parsl forks, which crashes where every library is loaded
    pytest.mark.skipif(sys.platform != "linux", reason="the environment of processes is read from /proc"),
]
QUEUE = Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide")
BLOCK = Block("slurm", QUEUE, 1, 3600)
NOT_READ = "its interchange (a process on this host) has ended; its worker pool has sent a message that is not read"
OLDER = """
import parsl.version
parsl.version.VERSION = "2025.01.01"
"""

HOSTILE = """
import os, pickle, sys
import parsl.serialize as module
from parsl.app.errors import RemoteExceptionWrapper

folder, honest, dumps = os.environ["HOSTILE"], module.serialize, pickle.dumps

class Bomb(Exception):
    def __reduce__(self):
        return os.mkdir, (folder + "/executed",)

def serialize(value, *args, **named):
    if isinstance(value, str) and '"result": 3' in value:
        raise Bomb
    return honest(value if isinstance(value, RemoteExceptionWrapper) else Bomb())

def hostile_dumps(value, *args, **named):
    if isinstance(value, dict) and value.get("type") == "registration" and not os.path.exists(folder + "/sent"):
        os.mkdir(folder + "/sent")
        value = {**value, "dir": Bomb()}
    return dumps(value, *args, **named)

if os.path.basename(folder) == "alpha":
    module.serialize = serialize
else:
    pickle.dumps = hostile_dumps
"""


class Notes:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.records.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.records if name == event]


def process_site(folder: Path, name: str, setup: str = "") -> Site:
    """Return a batch site whose blocks are processes of this machine."""

    def provider(lines: str) -> LocalProvider:
        return LocalProvider(init_blocks=0, min_blocks=0, max_blocks=1, worker_init=lines)

    made = dataclasses.replace(local_site(name, folder), route="batch", block=BLOCK, provider=provider)
    return dataclasses.replace(made, heartbeat_s=3, setup=setup)


@dataclasses.dataclass
class Rig:
    """A kernel over genuine Parsl executors of two sites."""

    kernel: Kernel
    notes: Notes
    token: str

    def executor(self, site: str) -> SiteExecutor:
        found: Any = self.kernel.kernel.executors[site]
        assert isinstance(found, SiteExecutor)
        return found

    def nap(self, site: str, seconds: int) -> Any:
        """Submit a task that takes so many seconds."""
        sleep: Any = ["sleep", str(seconds)]
        return self.kernel.submit(subprocess.call, sleep, on=site, remember=False)

    def wait(self, future: Any, seconds: float = 60.0) -> Any:
        """Wait for a future as the engine does, with a look at the health now and then."""

        def done() -> bool:
            self.kernel.check_health()
            return bool(future.done())

        wait_until(done, seconds)
        return future


def rig_of(folder: Path, sites: dict[str, Site]) -> Iterator[Rig]:
    run, notes = folder / "run", Notes()
    (run / "logs").mkdir(parents=True)
    patience = BlockFailureHandler(lambda site, failure: notes.write("block_failed", site=site))
    executors = [make_executor(site, run, patience) for site in sites.values()]
    retry = RetryPolicy({}, lambda label: None)
    with genuine_kernel(executors, run, retries=2, retry_handler=retry, strategy_period=0.1) as kernel:
        kernel.run, kernel.patience = SimpleNamespace(journal=notes, path=run), patience  # type: ignore[assignment]
        kernel.plan = SimpleNamespace(sites=sites, machines=sites)  # type: ignore[assignment]
        kernel.watches = {name: SimpleNamespace(block=BLOCK, executor=None) for name in sites}  # type: ignore[misc]
        kernel.ailing = {}
        yield Rig(kernel, notes, os.environ[TOKEN_VARIABLE])


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv(TOKEN_VARIABLE, os.urandom(8).hex())
    yield from rig_of(tmp_path, {name: process_site(tmp_path, name) for name in ("alpha", "beta")})


def test_a_dead_interchange_is_replaced_and_its_task_goes_on(rig: Rig) -> None:
    before, other = rig.executor("alpha"), rig.executor("beta")
    for name in ("alpha", "beta"):  # both sites have workers, so that the naps below begin at once
        assert rig.wait(rig.nap(name, 0)).exception() is None
    assert before.interchange_proc is not None
    pid = before.interchange_proc.pid
    assert pid in {process.pid for process in find_orphans(rig.token)}  # seen while it lives: it can be ended
    sleeping, undisturbed = rig.nap("alpha", 3), rig.nap("beta", 8)
    os.kill(pid, signal.SIGKILL)
    assert rig.wait(sleeping).exception() is None
    assert rig.executor("alpha") is not before and rig.executor("beta") is other
    assert [note["site"] for note in rig.notes.named("executor_replaced")] == ["alpha"]
    assert rig.wait(undisturbed).exception() is None and undisturbed.task_record["fail_count"] == 0
    assert {*before.blocks_to_job_id}.isdisjoint(rig.executor("alpha").blocks_to_job_id)


def test_another_parsl_at_a_site_is_named_and_ends_that_site_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is the genuine one, of a Parsl that calls itself older."""
    monkeypatch.setenv(TOKEN_VARIABLE, os.urandom(8).hex())
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "sitecustomize.py").write_text(OLDER)
    older = process_site(tmp_path, "alpha", f"export PYTHONPATH={tmp_path / 'older'}")
    for rig in rig_of(tmp_path, {"alpha": older, "beta": process_site(tmp_path, "beta")}):
        first = rig.executor("alpha")
        task = rig.nap("alpha", 0)
        error = root_cause(rig.wait(task))
        python = f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert isinstance(error, OtherVersions) and str(error).startswith(
            f"site alpha: it runs Parsl 2025.01.01 on Python {python}, the driver runs Parsl "
        )
        rig.kernel.check_health()
        assert rig.executor("alpha") is not first and rig.kernel.dead_executors() == []
        assert rig.wait(rig.nap("beta", 0)).exception() is None


def test_nothing_that_a_worker_pool_sends_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pools are genuine ones that send a pickle with a call in it: as an answer, an error, or a message."""
    monkeypatch.setenv(TOKEN_VARIABLE, os.urandom(8).hex())
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    sites = {}
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
        setup = f"export PYTHONPATH={tmp_path} HOSTILE={tmp_path / name}"
        sites[name] = process_site(tmp_path / "storage", name, setup)
    for rig in rig_of(tmp_path, sites):
        first = rig.executor("beta")
        naps = {name: rig.nap(name, 0) for name in sites}
        command: Any = ["sh", "-c", "exit 3"]
        failing = rig.kernel.submit(subprocess.call, command, on="alpha", remember=False)
        answer, error = (root_cause(rig.wait(future)) for future in (naps["alpha"], failing))
        assert isinstance(answer, AnswerRefused) and str(answer) == "site alpha: its answer is refused: it is not text"
        assert isinstance(error, TaskError) and "could not execute the call: mkdir" in str(error)
        assert (
            rig.wait(naps["beta"]).exception() is None
        )  # with a new interchange, and a pool that sends what it should
        assert (tmp_path / "beta" / "sent").exists() and rig.executor("beta") is not first
        assert [(note["site"], note["reason"]) for note in rig.notes.named("executor_replaced")] == [
            ("beta", NOT_READ + "; another is started")
        ]
    assert not list(tmp_path.rglob("executed"))


def test_a_stopped_interchange_holds_no_other_site_up_and_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    first = rig.executor("alpha")
    assert first.interchange_proc is not None
    stopped = psutil.Process(first.interchange_proc.pid)
    stopped.suspend()
    try:
        wait_until(lambda: first.silent_since is not None)
        assert rig.wait(rig.nap("beta", 0)).exception() is None
    finally:
        stopped.resume()
    wait_until(lambda: first.silent_since is None)
    assert rig.wait(rig.nap("alpha", 0)).exception() is None
    assert rig.executor("alpha") is first and not rig.notes.named("executor_replaced")


def test_the_block_of_a_stopped_interchange_is_given_back_in_bounded_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rig.executor("alpha")
    assert rig.wait(rig.nap("alpha", 0)).exception() is None
    wait_until(lambda: bool(first.managers))
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    assert first.interchange_proc is not None
    stopped = psutil.Process(first.interchange_proc.pid)
    stopped.suspend()
    try:
        giving_back = threading.Thread(target=first.scale_in_facade, args=(1,), daemon=True)
        giving_back.start()
        giving_back.join(patience(10.0))
        assert not giving_back.is_alive()
    finally:
        stopped.resume()


def test_an_interchange_that_hangs_for_long_is_replaced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    monkeypatch.setattr(module, "SILENT_S", 1.0)
    first = rig.executor("alpha")
    assert first.interchange_proc is not None
    psutil.Process(first.interchange_proc.pid).suspend()
    task = rig.nap("alpha", 0)
    assert rig.wait(task).exception() is None
    assert rig.executor("alpha") is not first


def test_a_held_site_submits_no_block_until_it_is_let_go(rig: Rig) -> None:
    executor = rig.executor("alpha")
    executor.held = "its queue cannot be asked"
    task = rig.nap("alpha", 0)
    assert rig.wait(rig.nap("beta", 0)).exception() is None
    time.sleep(patience(0.3))
    assert not executor.blocks_to_job_id and not task.done()
    executor.held = ""
    assert rig.wait(task).exception() is None


def test_parsls_words_about_versions() -> None:
    error = other_versions(VersionMismatch("py.v=3.11 parsl.v=2026.10.26", "py.v=3.12 parsl.v=2026.10.26"), "aurora")
    assert str(error) == (
        "site aurora: it runs Parsl 2026.10.26 on Python 3.12, the driver runs Parsl 2026.10.26 on Python 3.11."
        " Install the driver's versions in the site's environment"
    )
    assert other_versions(WorkersLost("gone"), "aurora") is None

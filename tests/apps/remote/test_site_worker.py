"""The project's Python at a site, and how the endpoint's worker calls it: text in, text out."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import wait_until
from site_policy import write_policy
from training_site import PLACE, PROJECT, Site, bare_environment

from apps.base import errors
from apps.base.error_records import error_from, error_record
from apps.base.errors import CrossfedError, EndpointProblem, PolicyRefused, TaskError, VersionMismatch
from apps.remote.calls import FUNCTIONS, answer_text, find_function
from apps.remote.site_worker import answer_line
from apps.training.progress import read_progress
from apps.trust.policy_file import POLICY_VARIABLE
from workflows.globus.compute.bootstrap import PYTHON
from workflows.globus.compute.registered import RELEASES

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CrossfedError)]
BOOTSTRAP = PROJECT / "workflows" / "globus" / "compute" / "bootstrap.py"
ENVIRONMENT = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
TRAIN = "apps.train:local_train"

WORKER = """
import json, sys
for line in sys.stdin:
    names = {}
    exec(open(sys.argv[1]).read(), names)  # as an endpoint does, again for each task
    print(json.dumps(names["call_site"](*json.loads(line))), flush=True)
"""


class Worker:
    """Stand-in for a worker of an endpoint: runs the bootstrap source in a process of its own.

    Args:
        policy: of the site.
        variables: that the endpoint's template sets.
    """

    def __init__(self, policy: Path, **variables: str) -> None:
        own = {**ENVIRONMENT, PYTHON: sys.executable, POLICY_VARIABLE: str(policy), **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(BOOTSTRAP)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/tmp",
            env={**os.environ, **own},
        )

    def start(self, function: str, *args: Any) -> None:
        request = {"function": function, "args": args}
        assert self.process.stdin
        self.process.stdin.write(json.dumps([json.dumps(request)]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(json.loads(self.process.stdout.readline()))

    def call(self, function: str, *args: Any) -> dict[str, Any]:
        self.start(function, *args)
        return self.answer()

    def child(self) -> psutil.Process:
        return wait_until(lambda: psutil.Process(self.process.pid).children())[0]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(**variables: str) -> Worker:
        started.append(Worker(write_policy(tmp_path / "policy", tmp_path), **variables))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def worker(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker()


def test_only_functions_of_the_list_are_called():
    for name in FUNCTIONS:
        assert callable(find_function(name))
    for name in ("os:system", "apps.server:prepare", "apps.train:_begin", ""):
        with pytest.raises(TaskError, match="does not offer"):
            find_function(name)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_every_kind_are_rebuilt(kind):
    error = kind("what", site="aurora", round=3, file="/f", remedy="Do it")
    found = error_from(json.loads(json.dumps(error_record(error))))
    assert type(found) is kind
    assert error_record(found) == error_record(error)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x) | st.lists(x)))
def test_any_record_becomes_an_error(record):
    assert isinstance(error_from(record), CrossfedError)


@pytest.mark.parametrize("kind", ["Path", "annotations", "os", "REASON_LENGTH", "NoSuch", "Exception", None, 3])
def test_unknown_kinds_become_task_errors(kind):
    found = error_from({"kind": kind, "what": 3, "round": "x", "site": "aurora"})
    assert type(found) is TaskError
    assert (found.site, found.round, found.what) == ("aurora", None, "no details")


def test_an_error_is_an_answer(tmp_path, monkeypatch):
    monkeypatch.setenv(POLICY_VARIABLE, str(write_policy(tmp_path / "policy", tmp_path)))
    status = {"function": "apps.site:site_status", "args": [PLACE, str(tmp_path)]}
    assert json.loads(answer_text(json.dumps(status), FUNCTIONS))["result"]["claims"] == []
    other = json.dumps({"function": "os:system", "args": ["true"]})
    assert json.loads(answer_text(other, FUNCTIONS))["error"]["kind"] == "PolicyRefused"
    for line in (
        "no json",
        "[]",
        '{"function": "apps.site:site_status"}',
        '{"function": "apps.site:site_status", "args": [1]}',
    ):
        found = answer_line(line)
        assert found["error"]["kind"] in ("TaskError", "PolicyRefused")
        assert found["worker"]["pid"] == os.getpid()


def test_one_process_serves_call_after_call(worker, tmp_path):
    site = Site(tmp_path)
    enrolled = worker.call("apps.train:enrol", PLACE, site.work)
    assert enrolled["result"]["shard_sha256"] == site.shard["shard_sha256"]
    trained = worker.call(TRAIN, *site.arguments())
    assert trained["worker"] == enrolled["worker"] == {"pid": worker.child().pid, "host": os.uname().nodename}
    assert trained["result"] | {"reused": True} == site.train()


def test_output_of_libraries_is_not_read_as_an_answer(start_worker, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom apps import site\n_status = site.site_status\n"
        "def loud(*a):\n    print('{}')\n    os.system('echo {}')\n    return _status(*a)\nsite.site_status = loud\n"
    )
    worker = start_worker(PYTHONPATH=f"{tmp_path}:{PROJECT}")
    found = worker.call("apps.site:site_status", PLACE, str(tmp_path))
    assert found["result"]["finished"] is None


def test_a_killed_child_is_reported_and_replaced(worker, tmp_path):
    site = Site(tmp_path)
    first = worker.call("apps.site:site_status", PLACE, str(site.root))["worker"]["pid"]
    worker.start(TRAIN, *site.arguments(steps=2000))
    wait_until(lambda: (read_progress(site.root) or {"step": 0})["step"] > 3)
    os.kill(first, signal.SIGKILL)
    lost = error_from(worker.answer()["error"])
    assert type(lost).__name__ == "WorkersLost"
    assert "code -9 before it answered" in str(lost)
    again = worker.call("apps.site:site_status", PLACE, str(site.root))
    assert again["worker"]["pid"] != first


def test_after_a_version_mismatch_the_child_ends(worker, tmp_path):
    site = Site(tmp_path)
    found = worker.call("apps.train:enrol", PLACE, site.work | {"code_version": "0123456789abcdef"})
    assert isinstance(error_from(found["error"]), VersionMismatch)
    wait_until(lambda: worker.child().status() == psutil.STATUS_ZOMBIE)
    assert worker.call("apps.train:enrol", PLACE, site.work)["worker"]["pid"] != found["worker"]["pid"]


def test_an_environment_without_the_project_is_the_sites_trouble(start_worker, tmp_path):
    bare = bare_environment(tmp_path / "bare") / "bin" / "python"
    cases = {"/no/such/python": "cannot start /no/such/python: No such file", str(bare): "No module named 'apps'"}
    for python, text in cases.items():
        answer = start_worker(**{PYTHON: python}, PYTHONPATH="/").call("apps.site:site_status", PLACE, "/tmp")
        found = error_from(answer["error"])
        assert isinstance(found, EndpointProblem)
        assert text in str(found) and "python_env" in str(found)


def test_an_endpoint_without_the_operators_settings_runs_nothing(start_worker):
    found = error_from(start_worker(**{PYTHON: ""}).call("apps.site:block_started", PLACE)["error"])
    assert isinstance(found, EndpointProblem) and "operator of the site" in str(found)
    found = error_from(start_worker(**{POLICY_VARIABLE: ""}).call("apps.site:block_started", PLACE)["error"])
    assert isinstance(found, PolicyRefused) and found.rule == "policy"


def test_what_a_driver_could_run_at_a_site_is_refused(worker, tmp_path):
    """Interpreter, environment and launch command of a request, and a folder elsewhere: nothing of them is run."""
    mark = tmp_path / "mark"
    (drop := tmp_path / "drop" / "apps" / "remote").mkdir(parents=True)
    for package in (drop.parent, drop):
        (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    site = Site(tmp_path)
    place, work, order, base, shard = site.arguments()
    launch = {**work["parallel"], "nodes": 2, "sharding": "ddp", "launch": ["sh", "-c", f"touch {mark}"]}
    write_policy(tmp_path / "policy", tmp_path, launch=[], data=["embedded"])
    requests = {
        "environment": {"environment": {"PYTHONPATH": str(drop.parent.parent)}},
        "python": {"python": f"{drop}/sh"},
        "launch": {"function": TRAIN, "args": [place, {**work, "parallel": launch}, order, base, shard]},
        "root": {"function": "apps.train:enrol", "args": [place, {**work, "root": "/elsewhere"}]},
        "data": {"args": [place, {**work, "data": {**work["data"], "source": "/etc"}}]},
    }
    for rule, request in requests.items():
        worker.process.stdin.write(
            json.dumps([json.dumps({"function": "apps.train:enrol", "args": [place, work], **request})]) + "\n"
        )
        worker.process.stdin.flush()
        found = error_from(worker.answer()["error"])
        assert isinstance(found, PolicyRefused) and found.rule == rule
    assert not mark.exists() and not Path("/elsewhere").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_worker_and_saves_its_training(number, worker, tmp_path):
    site = Site(tmp_path)
    worker.start(TRAIN, *site.arguments(steps=100_000))
    wait_until(lambda: (read_progress(site.root) or {"step": 0})["step"] > 3)
    child = worker.child()
    worker.process.send_signal(number)
    worker.process.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert len(site.saved_steps()) == 1
    assert list((site.root / "claims").iterdir()) == []


def test_an_idle_one_ends_with_the_worker(worker, tmp_path):
    worker.call("apps.site:site_status", PLACE, str(tmp_path))
    child = worker.child()
    worker.process.kill()
    worker.process.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_bootstrap_source_needs_no_other_module():
    names: dict[str, Any] = {}
    exec(compile(BOOTSTRAP.read_text(), "bootstrap", "exec"), names)
    own = {v.__module__ for v in names.values() if hasattr(v, "__module__") and v.__module__ is not None}
    assert not {name for name in own if name.startswith(("apps", "workflows", "data"))}
    assert len(BOOTSTRAP.read_text()) < 10_000
    assert Path(BOOTSTRAP).name == "bootstrap.py"


def test_the_bootstrap_source_is_that_of_a_release():
    """Endpoints accept it by its id: a changed text needs an entry, and operators have to accept it anew."""
    assert hashlib.sha256(BOOTSTRAP.read_bytes()).hexdigest() in RELEASES

"""Sites behind genuine endpoint agents: real training through them, and every part of the way killed once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl
import pytest
from globus_site import child_variables, driver, site_config, slow_down
from parsl.config import Config
from patience import patience, wait_until
from site_policy import write_policy
from training_site import PLACE, PROJECT, Site

from apps.base.errors import EndpointProblem, VersionMismatch, WorkersLost
from apps.site import site_status
from apps.train import enrol, local_train
from apps.training.progress import read_progress

pytestmark = pytest.mark.globus
START_S = 120  # for an agent to start its child, its interchange and a worker
COLD_S = patience(START_S)


@pytest.fixture
def stack(globus_client):
    return globus_client


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """Folder of the site's code, which is as slow as a test wants it."""
    return tmp_path_factory.mktemp("code")


@pytest.fixture
def aurora(stack, code, tmp_path_factory):
    """The agent, which all tests of this file share; its policy allows everything below pytest's folder."""
    slow_down(code, 0.0)
    if "aurora" not in stack.agents:
        policy = write_policy(code / "policy", tmp_path_factory.getbasetemp(), data=["embedded"], models=["tiny"])
        stack.add_agent("aurora", variables=child_variables(code, policy))
    return stack.agents["aurora"]


@pytest.fixture(autouse=True)
def attentive(monkeypatch):
    """The service is asked once a second even when nothing changes, and calls again after short pauses."""
    monkeypatch.setattr("workflows.globus.compute.service.LONGEST_POLL_S", 1.0)
    monkeypatch.setattr("workflows.globus.compute.calls.RETRY_S", 3.0)


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path / "site")


def drive(tmp_path: Path, site: Site, agent, **settings):
    own = {name: settings.pop(name) for name in ("read_state", "user_endpoint_config") if name in settings}
    return driver(tmp_path / "run", site_config(site.root, agent.endpoint_id, **settings), **own)


def step(site: Site) -> int:
    return (read_progress(site.root) or {"step": 0})["step"]


def wait_in_training(training: Future, condition: Callable[[], Any]) -> None:
    """Wait for a state of a training that runs; one that has ended does not come to it any more."""
    wait_until(condition, START_S, unless=lambda: training.done() and repr(training))


def submissions(stack) -> int:
    return stack.service.count_calls(r"/submit$", "POST")


def test_enrolling_and_training(tmp_path, aurora, site):
    site.work = site.work | {"root": str(tmp_path / "fresh"), "out": str(tmp_path / "fresh" / "out")}
    site.root = tmp_path / "fresh"
    with drive(tmp_path, site, aurora) as run:
        enrolled = run.executor.submit(enrol, {}, PLACE, site.work).result(COLD_S)
        assert enrolled["shard_sha256"] == site.shard["shard_sha256"]
        manifest = run.train(site).result(COLD_S)
        again = run.train(site).result(COLD_S)
        assert again == manifest | {"reused": True}
        assert run.executor.open_tasks() == run.executor.outstanding() == 0
    workers = [(r["worker"]["host"], r["worker"]["pid"]) for r in run.events("compute_ended")]
    assert len(workers) == 3 and len(set(workers)) == 1  # warm: one process for all
    assert [r["function"] for r in run.events("compute_submitting")] == [
        "apps.train:enrol",
        "apps.train:local_train",
        "apps.train:local_train",
    ]
    site.work = site.work | {"root": str(tmp_path / "site" / "site")}
    assert site.train()["artifact"] == manifest["artifact"]  # the same bits as without Globus


def test_as_parsls_executor(tmp_path, aurora, site):
    with drive(tmp_path, site, aurora) as run:
        with parsl.load(Config(executors=[run.executor], run_dir=str(tmp_path / "parsl"), initialize_logging=False)):
            train = parsl.python_app(local_train, executors=["aurora"])
            place, work, order, base, shard = site.arguments()
            shard = parsl.python_app(enrol, executors=["aurora"])(place, work)
            manifest = train(place, work, order, base, shard).result(COLD_S)
            refused = train(place, work | {"code_version": "x"}, order, base, shard)
            with pytest.raises(VersionMismatch, match=r"site aurora, round 1: this site runs crossfed code"):
                refused.result(COLD_S)
    assert manifest["steps_done"] == 2


def test_a_template_that_does_not_take_the_settings(tmp_path, stack, aurora, site):
    stack.compute.rules.start_wait_s = 30
    with drive(tmp_path, site, aurora, user_endpoint_config={"workers_per_node": "no number"}) as run:
        with pytest.raises(EndpointProblem, match=r"site aurora: the endpoint refuses the call \(422\).*template"):
            run.train(site).result(COLD_S)


def trained_to(steps: int, run: Any, site: Site, tries: int = 3) -> Future:
    """Return a training that has done so many steps; on a busy machine an agent may take a silent worker for lost."""
    for _ in range(tries):
        training = run.train(site, steps=60, checkpoint_s=0.2)
        wait_until(lambda training=training: step(site) >= steps or training.done(), START_S)
        if not training.done():
            return training
        assert isinstance(training.exception(), WorkersLost)
    raise AssertionError("lost each time")


def test_a_killed_worker(tmp_path, code, aurora, site):
    slow_down(code, 0.05)
    with drive(tmp_path, site, aurora) as run:
        lost = trained_to(8, run, site)
        aurora.kill_worker()
        with pytest.raises(WorkersLost, match="site aurora, round 1: the endpoint has lost the task: .*WorkerLost"):
            lost.result(COLD_S)

        def finished():  # the other one saves and goes; until then it holds the task
            return run.train(site, steps=60, checkpoint_s=0.2).result(COLD_S)

        manifest = finished()
    assert manifest["attempts"] >= 2
    assert manifest["artifact"] == Site(tmp_path / "whole").train(steps=60)["artifact"]


def test_a_killed_child_endpoint_is_noticed_by_the_sites_files(tmp_path, stack, code, aurora, site, monkeypatch):
    """Its interchange and workers are orphans that continue: the training ends, and the service gets no result.

    The block of the orphans then ends by itself, before its walltime.
    """
    slow_down(code, 0.05)
    with drive(tmp_path, site, aurora, read_state=lambda _: site_status(PLACE, str(site.root))) as run:
        run.executor.liveness.look_s = 0.5
        monkeypatch.setattr("workflows.globus.compute.calls.RESULT_GRACE_S", 3.0)
        training = run.train(site, steps=60, checkpoint_s=0.2)
        wait_in_training(training, lambda: step(site) >= 8)
        task_id = run.events("compute_submitted")[-1]["task_id"]
        orphans = aurora.pools()
        assert orphans
        aurora.kill_child(stack.compute.tasks[task_id]["endpoint_id"])
        manifest = training.result(COLD_S)
        assert run.executor.last_look["finished"] == manifest["task_id"]
    assert (manifest["attempts"], manifest["reused"]) == (1, True)
    assert run.events("compute_asked_again")[0]["reason"] == "its result is at the site and was not delivered"
    wait_until(lambda: not {pool.pid for pool in orphans} & {pool.pid for pool in aurora.pools()})


def test_an_endpoint_that_dies_with_all_its_processes(tmp_path, code, aurora, site):
    """As a node that is switched off: no liveness, so it is submitted again and continues from the checkpoint."""
    slow_down(code, 0.05)
    with drive(tmp_path, site, aurora, silence_s=4.0, read_state=lambda _: site_status(PLACE, str(site.root))) as run:
        run.executor.liveness.look_s = 0.5
        training = run.train(site, steps=60, checkpoint_s=0.2)
        wait_in_training(training, lambda: step(site) >= 8 and run.executor.newest_checkpoint())
        for process in aurora.processes():
            if process.pid != aurora.pid:
                process.kill()
        manifest = training.result(COLD_S)
    assert (manifest["attempts"], manifest["reused"]) == (2, False)
    assert {r["reason"] for r in run.events("compute_asked_again")} == {"no news"}
    assert manifest["artifact"] == Site(tmp_path / "whole").train(steps=60)["artifact"]


def test_without_a_broker_for_half_a_minute(tmp_path, stack, code, aurora, site):
    slow_down(code, 0.05)
    with drive(tmp_path, site, aurora) as run:
        training = run.train(site, steps=40)
        wait_in_training(training, lambda: step(site) >= 3)
        stack.broker.stop()
        time.sleep(30)
        assert not training.done()
        stack.broker.start()
        manifest = training.result(COLD_S)
    assert manifest["attempts"] == 1  # trained once, whether its result was delivered or found at the site


DRIVER = """
import json, sys
from pathlib import Path
from globus_site import driver, site_config
from apps.train import local_train
folder, endpoint, arguments = json.loads(sys.argv[1])
folder = Path(folder)
with driver(folder / "run", site_config(folder / "site" / "site", endpoint)) as run:
    print(run.executor.submit(local_train, {}, *arguments).result())
"""


def test_a_killed_driver_and_the_next_one(tmp_path, stack, code, aurora, site):
    slow_down(code, 0.05)
    arguments = site.arguments(steps=60)
    call = json.dumps([str(tmp_path), aurora.endpoint_id, arguments])
    paths = {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}"}
    first = subprocess.Popen([sys.executable, "-c", DRIVER, call], env={**os.environ, **paths})
    wait_until(lambda: step(site) >= 3, START_S, unless=first.poll)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with driver(tmp_path / "run", site_config(site.root, aurora.endpoint_id)) as run:
        training = run.executor.submit(local_train, {}, *arguments)
        assert run.executor.open_tasks() == 1
        manifest = training.result(COLD_S)
    assert (manifest["attempts"], manifest["reused"]) == (1, False)
    assert submissions(stack) == 1
    assert [r["state"] for r in run.events("compute_ended")] == ["success"]


def test_looking_through_an_endpoint_on_the_login_node(tmp_path, code, aurora, site):
    """The endpoint of the blocks is busy with the training; another one reads its progress."""
    config = site_config(site.root, aurora.endpoint_id, files=aurora.endpoint_id)
    slow_down(code, 0.1)
    with driver(tmp_path / "run", config, files_config={"idle_heartbeats": 100}) as run:
        run.executor.liveness.look_s = 1.0
        training = run.train(site, steps=150, checkpoint_s=0.5)
        wait_in_training(training, lambda: (run.executor.last_look.get("progress") or {}).get("step", 0) > 1)
        assert run.executor.last_look["claims"] == [run.executor.last_look["progress"]["task_id"]]
        assert not training.done()
        training.result(COLD_S)
    assert len(run.events("compute_submitted")) == 1  # looks leave no trace


def test_no_secret_is_written(tmp_path, stack, aurora, site, caplog):
    caplog.set_level("DEBUG")
    with drive(tmp_path, site, aurora) as run:
        run.train(site, steps=3).result(COLD_S)
    secrets = [stack.account.secret, *stack.auth._tokens]
    assert len(secrets) > 1
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written.append("\n".join(record.getMessage() for record in caplog.records if "urllib3" not in record.name).encode())
    for task in stack.compute.tasks.values():
        written.append(json.dumps(task).encode())
    assert len(written) > 10
    assert not [secret for secret in secrets for content in written if secret.encode() in content]

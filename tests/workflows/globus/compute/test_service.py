"""Globus Compute calls with the genuine client and a loopback service: outages, lost and doubled tasks, restarts."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from globus_site import client, driver, site_config
from patience import patience, wait_until
from site_policy import write_policy
from toy_agent import ToyAgent, toy_agent
from training_site import PLACE, Site

from apps.base.errors import EndpointProblem, TaskError, TrainingError, UserMistake, WorkersLost
from apps.site import site_status
from apps.train import enrol, local_train
from apps.training.leases import acquire
from apps.training.task import Task
from apps.trust.policy_file import POLICY_VARIABLE
from site_configs.library.site import Exchange
from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.rate_limit import RateLimiter
from workflows.globus.finished import find_manifest

LOOK = "apps.site:site_status"


def as_the_site_would(request: str) -> str:
    """The project's Python, without an interpreter of its own."""
    from apps.remote.site_worker import answer_line

    return json.dumps(answer_line(request))


@pytest.fixture
def agent(tmp_path, monkeypatch):
    monkeypatch.setattr("workflows.globus.compute.service.LONGEST_POLL_S", 0.2)
    monkeypatch.setattr("workflows.globus.compute.service.POLL_S", 0.05)
    monkeypatch.setattr("workflows.globus.compute.service.RETRY_S", 0.1)
    monkeypatch.setattr("workflows.globus.compute.service.LONGEST_RETRY_S", 0.3)
    monkeypatch.setattr("workflows.globus.compute.endpoint_status.STATUS_S", 0.2)
    monkeypatch.setattr("workflows.globus.compute.endpoint_status.OFFLINE_S", 0.2)
    monkeypatch.setattr("workflows.globus.compute.calls.RETRY_S", 0.3)
    with toy_agent(tmp_path / "service", as_the_site_would) as running:
        for name, value in running.variables(tmp_path / "login").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(
            POLICY_VARIABLE, str(write_policy(tmp_path / "policy", tmp_path, data=["embedded"], models=["tiny"]))
        )
        monkeypatch.setenv("CROSSFED_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path / "site")


def drive(tmp_path: Path, agent: ToyAgent, site: Site | None = None, **settings):
    ours = ("read_state", "api", "user_endpoint_config")
    own = {name: settings.pop(name) for name in ours if name in settings}
    root = site.root if site else tmp_path / "root"
    return driver(tmp_path / "run", site_config(root, agent.endpoint_id, **settings), **own)


def submissions(agent: ToyAgent) -> int:
    return agent.service.count_calls("/submit$", "POST")


def test_calls_and_answers(tmp_path, agent, site):
    with drive(tmp_path, agent, site) as run:
        assert run.executor.submit(enrol, {}, PLACE, site.work).result(patience(20))["samples"] == 6
        assert run.train(site).result(patience(20))["steps_done"] == 2
        with pytest.raises(TrainingError, match="site aurora, round 1: loss is"):
            run.train(site, learning_rate=1e30, steps=9).result(patience(20))
        asked = json.loads(agent.calls[0])
        assert asked.keys() == {"function", "args", "campaign"}  # neither interpreter nor environment
        assert asked["args"][1]["data"]["source"] == "" and asked["args"][1]["parallel"]["launch"] == []
    assert agent.service.count_calls("/functions$", "POST") == 1
    assert [r["state"] for r in run.events("compute_ended")] == ["success", "success", "LossNotFinite"]
    assert "learning_rate" not in (tmp_path / "run" / "journal.jsonl").read_text()  # no arguments


def test_what_is_too_large_is_refused_and_the_executor_lives_on(tmp_path, agent):
    with drive(tmp_path, agent) as run:
        with pytest.raises(UserMistake, match=r"site aurora: the arguments of apps.site:site_status are 960\d+ bytes"):
            run.executor.submit(site_status, {}, PLACE, "x" * 9_600_000)
        with pytest.raises(TaskError, match=r"site aurora: the arguments of apps.site:site_status are not plain"):
            run.executor.submit(site_status, {}, PLACE, Path("x"))
        assert submissions(agent) == 0
        agent.compute.rules.payload_limit_bytes = 20_000
        with pytest.raises(UserMistake, match=r"site aurora: Globus Compute refuses the request as too large"):
            run.executor.submit(site_status, {}, PLACE, "x" * 30_000).result(patience(20))
        assert run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))["finished"] is None
        assert not run.executor.bad_state_is_set


@pytest.mark.parametrize("status", [500, 503, 429, 409])
def test_repeated_errors_of_the_service_are_waited_for(status, tmp_path, agent):
    agent.compute.storm(status, 8, r"/(functions|submit|batch_status)$")
    with drive(tmp_path, agent) as run:
        assert run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(30))["claims"] == []
    assert len(run.events("compute_unreachable")) == len(run.events("compute_back")) == 1
    assert str(status) in run.events("compute_unreachable")[0]["reason"]
    assert len(run.events("compute_submitted")) == 1


def test_a_service_that_goes_and_comes_back(tmp_path, agent):
    agent.running.clear()
    with drive(tmp_path, agent) as run:
        future = run.executor.submit(site_status, {}, PLACE, str(tmp_path))
        wait_until(run.executor.open_tasks)
        agent.service.stop()
        wait_until(lambda: run.events("compute_unreachable"))
        agent.service.start()
        agent.running.set()
        assert future.result(patience(30))["claims"] == []
    assert len(run.events("compute_back")) == 1
    assert submissions(agent) == 1


def test_an_expired_token_is_renewed(tmp_path, agent):
    with drive(tmp_path, agent) as run:
        run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
        agent.auth.expire_tokens()
        run.executor.submit(site_status, {}, PLACE, f"{tmp_path}/b").result(patience(20))
    assert len(run.events("compute_submitted")) == 2


def test_a_login_that_is_refused_names_the_remedy(tmp_path, agent):
    agent.auth.change_secret(agent.account)
    with drive(tmp_path, agent) as run:
        with pytest.raises(UserMistake, match=r"site aurora: Globus .*Set GLOBUS_COMPUTE"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(30))


def test_a_slow_answer_makes_two_tasks_and_one_training(tmp_path, agent, site, monkeypatch):
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "1")
    agent.running.clear()
    agent.compute.slow_submissions(2.0)
    with drive(tmp_path, agent, site) as run:
        training = run.train(site)
        wait_until(lambda: len(agent.compute.tasks) == 2)
        agent.running.set()
        manifest = training.result(patience(30))
        wait_until(lambda: len(agent.calls) == 2)
    assert manifest["attempts"] == 1  # the other one was answered from the manifest
    assert [len(run.events(name)) for name in ("compute_submitting", "compute_submitted")] == [2, 1]


def test_two_tasks_at_once_train_once(tmp_path, agent, site):
    """The second finds the lease of the first, and is submitted again until the first is done."""
    request = site.arguments()
    task = Task(*request)
    with drive(tmp_path, agent, site) as run:
        with acquire(site.root, task.id, heartbeat_s=0.1):
            training = run.train(site)
            wait_until(lambda: len(run.events("compute_ended")) >= 2)
            assert not training.done()
        assert training.result(patience(20))["attempts"] == 1
    states = [r["state"] for r in run.events("compute_ended")]
    assert set(states[:-1]) == {"LeaseHeld"} and states[-1] == "success"


def test_results_that_the_service_has_discarded_are_requested_again(tmp_path, agent, site):
    agent.compute.rules.abandon_after_s = 0.0
    with drive(tmp_path, agent, site) as run:
        training = run.train(site)
        wait_until(lambda: run.events("compute_ended"))
        agent.compute.rules.abandon_after_s = None
        manifest = training.result(patience(20))
    assert (manifest["attempts"], manifest["reused"]) == (1, True)
    assert run.events("compute_ended")[0]["state"] == "forgotten"


def functions(agent: ToyAgent) -> list[str]:
    return [json.loads(call)["function"].partition(":")[2] for call in agent.calls]


@pytest.mark.parametrize("driver_dies", [False, True])
@pytest.mark.parametrize("by", ["files endpoint", "files"])
def test_a_discarded_result_is_taken_from_the_sites_manifest_without_a_block(by, driver_dies, tmp_path, agent, site):
    """As after a night in which the driver was away: the second call would wait for a block, for a file of a kB."""
    agent.compute.rules.abandon_after_s = 0.0

    def start(name: str):
        if by == "files endpoint":
            return drive(tmp_path, agent, site, files=agent.endpoint_id)
        exchange = Exchange(site.root, site.outgoing)
        config = site_config(site.root, agent.endpoint_id, exchange=exchange, carrier="copy")
        return driver(tmp_path / "run", config, find_manifest=partial(find_manifest, config, None, None))

    def result(training) -> dict:
        if by == "files endpoint":
            wait_until(lambda: "finished_training" in functions(agent))
            agent.compute.rules.abandon_after_s = None  # for the answer of the search
        return training.result(patience(30))

    with start("first") as run:
        training = run.train(site)
        if driver_dies:
            wait_until(lambda: "local_train" in functions(agent))
        else:
            assert result(training)["reused"]
    if driver_dies:
        with start("second") as run:
            assert result(run.train(site))["reused"]
    assert functions(agent).count("local_train") == 1
    assert len(run.events("compute_found")) == 1


def test_what_is_not_finished_is_submitted_again(tmp_path, agent, site):
    agent.compute.rules.drop_results = 1
    handle, agent.handle = agent.handle, lambda *_: "lost"
    with drive(tmp_path, agent, site, files=agent.endpoint_id, silence_s=0.5, queue_s=0.5) as run:
        training = run.train(site)
        wait_until(lambda: "local_train" in functions(agent))
        agent.handle = handle
        assert training.result(patience(30))["reused"] is False
    done = [name for name in functions(agent) if name != "site_status"]
    assert done[:3] == ["local_train", "finished_training", "local_train"]


def test_an_unknown_task_does_not_hide_the_others(tmp_path, agent, site):
    agent.service.fault(
        "/batch_status$", status=404, count=-1, body={"code": "TASK_NOT_FOUND", "message": "one of them"}
    )
    agent.running.clear()
    with drive(tmp_path, agent, site) as run:
        training, seen = run.train(site), run.executor.submit(site_status, {}, PLACE, str(site.root))
        wait_until(lambda: run.executor.open_tasks() == 2)
        first = run.events("compute_submitted")[0]["task_id"]
        del agent.compute.tasks[first]
        agent.running.set()
        assert seen.result(patience(20))["time"] > 0
        assert training.result(patience(20))["steps_done"] == 2
    assert [(r["task_id"], r["state"]) for r in run.events("compute_ended") if r["state"] != "success"] == [
        (first, "forgotten")
    ]


def test_a_lost_result_is_noticed_in_the_sites_files(tmp_path, agent, site):
    """The training ends and its result is lost: the site's files show that it has ended."""
    agent.compute.rules.drop_results = 1
    with drive(tmp_path, agent, site, read_state=lambda _: site_status(PLACE, str(site.root))) as run:
        run.executor.liveness.look_s = 0.1
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("workflows.globus.compute.calls.RESULT_GRACE_S", 0.5)
            manifest = run.train(site).result(patience(30))
    assert (manifest["attempts"], manifest["reused"]) == (1, True)


def test_a_call_without_news_is_submitted_again(tmp_path, agent):
    agent.compute.rules.drop_results = 1
    with drive(tmp_path, agent, silence_s=0.25) as run:
        assert run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))["claims"] == []
    assert [r["reason"] for r in run.events("compute_asked_again")] == ["no news"]


def test_a_failed_look_is_no_sign_of_liveness(tmp_path, agent):
    agent.running.clear()
    looks = []

    def broken(site: str) -> None:
        looks.append(threading.current_thread().name)
        raise OSError("no way")

    with drive(tmp_path, agent, read_state=broken) as run:
        run.executor.liveness.look_s = 0.05
        request = Site(tmp_path / "site").arguments()
        run.executor.submit(local_train, {}, *request)
        wait_until(lambda: len(looks) > 2)
        assert run.executor.last_look == {"seen_at": None, "changed_at": None}
    assert set(looks) == {"look-aurora"}


def test_lost_workers_are_reported_and_a_retry_is_another_task(tmp_path, agent):
    agent.handle = lambda *_: (_ for _ in ()).throw(RuntimeError("WorkerLost"))
    with drive(tmp_path, agent) as run:
        with pytest.raises(WorkersLost, match="site aurora"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
        agent.handle = as_the_site_would
        assert run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))["claims"] == []
    assert [r["state"] for r in run.events("compute_ended")] == ["WorkersLost", "success"]


def test_nothing_but_json_is_read(tmp_path, agent):
    """A pickle that would leave a file behind, if it were read."""
    from globus_compute_sdk.serialize import DillDataBase64

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "boom",)

    agent.buffer = lambda _: DillDataBase64().serialize(Bomb())
    with drive(tmp_path, agent) as run:
        with pytest.raises(TaskError, match="site aurora: the site's answer is not JSON and is not read"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
        time.sleep(0.2)
        assert not (tmp_path / "boom").exists()


def test_an_unknown_endpoint(tmp_path, agent):
    agent.endpoint_id = "00000000-0000-0000-0000-000000000000"
    with drive(tmp_path, agent) as run:
        with pytest.raises(EndpointProblem, match=r"site aurora: the endpoint refuses the call \(404\).*endpoint's id"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))


def test_an_identity_without_access_to_the_endpoint(tmp_path, agent):
    agent.service.fault(r"/submit$", status=403, body={"code": "FORBIDDEN", "message": "not for you"})
    with drive(tmp_path, agent) as run:
        with pytest.raises(EndpointProblem, match=r"\(403\): not for you. Ask the endpoint's owner"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))


def test_a_function_that_the_service_has_lost_is_registered_again(tmp_path, agent):
    with drive(tmp_path, agent) as run:
        run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
        agent.compute.functions.clear()
        run.executor.submit(site_status, {}, PLACE, f"{tmp_path}/b").result(patience(20))
    assert len(run.events("compute_function")) == 2


def test_the_function_is_registered_once_for_an_account(tmp_path, agent):
    """Operators let their endpoints accept it by its id, so another run must not bring another one."""
    for number in range(2):
        with driver(tmp_path / f"run{number}", site_config(tmp_path, agent.endpoint_id)) as run:
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
    assert agent.service.count_calls("/functions$", "POST") == 1


def test_an_endpoint_that_accepts_another_function_is_told_with_the_remedy(tmp_path, agent):
    agent.handle = lambda _: (_ for _ in ()).throw(RuntimeError("Function 1 not permitted on endpoint 2"))
    with drive(tmp_path, agent) as run:
        with pytest.raises(EndpointProblem, match=r"site aurora: .*operator of the site.*--function UUID"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))


def test_the_next_driver_adopts_what_is_open(tmp_path, agent, site):
    agent.running.clear()
    with drive(tmp_path, agent, site) as first:
        first.train(site)
        wait_until(first.executor.open_tasks)
        assert (first.executor.open_tasks(), first.executor.outstanding()) == (1, 1)
        began = time.monotonic()
    assert time.monotonic() - began < patience(10)  # what runs at a site is not waited for
    with drive(tmp_path, agent, site) as second:
        training = second.train(site)
        same = second.train(site)
        assert second.executor.open_tasks() == 1
        agent.running.set()
        assert training.result(patience(20)) == same.result(patience(20))
    assert submissions(agent) == 1
    assert agent.service.count_calls("/functions$", "POST") == 1
    with drive(tmp_path, agent, site) as third:  # ended, and asked again all the same
        assert third.train(site).result(patience(20))["reused"]


def test_a_task_of_another_endpoint_is_not_adopted(tmp_path, agent):
    agent.running.clear()
    with drive(tmp_path, agent) as first:
        first.executor.submit(site_status, {}, PLACE, str(tmp_path))
        wait_until(first.executor.open_tasks)
    known, other = agent.compute.endpoints.known, "11111111-0000-0000-0000-000000000000"
    known[other] = known[agent.endpoint_id]
    agent.queues.declare(f"{other}.commands")
    agent.endpoint_id = other
    with drive(tmp_path, agent) as second:
        second.executor.submit(site_status, {}, PLACE, str(tmp_path))
        wait_until(lambda: len(second.events("compute_submitted")) == 2)
    assert len({r["endpoint"] for r in second.events("compute_submitted")}) == 2


def test_the_journal_records_when_an_endpoint_goes_offline_and_comes_back(tmp_path, agent):
    agent.running.clear()
    with drive(tmp_path, agent) as run:
        run.executor.submit(site_status, {}, PLACE, str(tmp_path))
        wait_until(run.executor.open_tasks)
        agent.compute.endpoints.known.update_record(agent.endpoint_id, heartbeat_at=0.0)
        wait_until(lambda: run.events("endpoint_status"))
        agent.beat()
        wait_until(lambda: len(run.events("endpoint_status")) == 2)
    assert [(r["site"], r["status"]) for r in run.events("endpoint_status")] == [
        ("aurora", "offline"),
        ("aurora", "online"),
    ]


def test_template_values_reach_the_endpoint(tmp_path, agent):
    with drive(tmp_path, agent, user_endpoint_config={"account": "ABC", "nodes": 2}) as run:
        run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))
    (body, _), *_ = agent.queues.taken(f"{agent.endpoint_id}.commands")
    assert json.loads(body)["kwargs"]["user_opts"] == {"account": "ABC", "nodes": 2}


def test_the_rate_limit():
    now = [0.0]
    moments = []
    limiter = RateLimiter(3, 10.0, lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(8):
        limiter()
        moments.append(now[0])
    assert moments == [0, 0, 0, 10, 10, 10, 20, 20]


def test_a_client_that_cannot_be_made_is_reported(tmp_path, agent, caplog):
    def not_logged_in():
        raise UserMistake("not logged in", remedy="Run: python workflows/login.py")

    caplog.set_level(logging.CRITICAL)
    with drive(tmp_path, agent, api=ComputeApi(not_logged_in)) as run:
        with pytest.raises(UserMistake, match=r"site aurora: not logged in. Run: python workflows/login.py"):
            run.executor.submit(site_status, {}, PLACE, str(tmp_path)).result(patience(20))


def test_help_does_not_wait_for_globus():
    modules = "workflows.globus.compute.api, workflows.globus.compute.service"
    code = f"import sys, {modules}\nprint('globus_compute_sdk' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
    assert client.__doc__

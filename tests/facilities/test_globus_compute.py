"""Tests of the stand-in of Globus Compute with the real SDK: submissions, limits, losses. The test is the agent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
import requests
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, Task
from globus_compute_sdk import Client
from globus_compute_sdk.errors import TaskPending, VersionMismatch
from globus_compute_sdk.serialize import ComputeSerializer

from facilities.globus.amqp import MemoryQueues
from facilities.globus.auth import COMPUTE_SERVER, Auth
from facilities.globus.compute import Compute
from facilities.globus.http import HttpService
from facilities.globus.stack import client_variables

SCOPE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"


class Played:
    """A service, its real client and an agent whose part the test takes."""

    def __init__(self, service: HttpService, state: Path) -> None:
        self.service, self.auth, self.queues = service, Auth(service), MemoryQueues("t.")
        self.state, self.account = state, self.auth.add_service_account()
        self.compute = self.new_compute()

    def new_compute(self) -> Compute:
        compute = Compute(self.service, self.auth, self.queues, self.state)
        compute.start()
        return compute

    def bearer(self) -> dict[str, str]:
        form = {"grant_type": "client_credentials", "scope": SCOPE}
        credentials = (self.account.client_id, self.account.secret)
        token = requests.post(f"{self.service.url}/v2/oauth2/token", data=form, auth=credentials).json()
        assert token["resource_server"] == COMPUTE_SERVER
        return {"Authorization": f"Bearer {token['access_token']}"}

    def call(self, method: str, path: str, document: Any = None) -> requests.Response:
        return requests.request(method, f"{self.service.url}{path}", json=document, headers=self.bearer())

    def register(self) -> str:
        return self.call("POST", "/v3/endpoints", {"endpoint_name": "played"}).json()["endpoint_id"]

    def heartbeat(self, endpoint_id: str, **state: Any) -> None:
        report = EPStatusReport(
            endpoint_id=endpoint_id, global_state={"heartbeat_period": 30} | state, task_statuses={}
        )
        self.queues.receive("heartbeats", messagepack.pack(report))

    def work(self, value: object) -> list[str]:
        """Answer every waiting task with a value; return their ids."""
        done = []
        for queue in [name for name in self.queues.queues if name.endswith(".tasks")]:
            for body, _ in self.queues.taken(queue):
                task = messagepack.unpack(body)
                assert isinstance(task, Task)
                done.append(str(task.task_id))
                result = Result(task_id=task.task_id, data=ComputeSerializer().serialize(value))
                self.queues.receive("results", messagepack.pack(result))
        return done


def double(number):
    return 2 * number


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    with HttpService() as service:
        stage = Played(service, tmp_path / "state.sqlite")
        for name, value in client_variables(service, stage.account).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "driver"))
        yield stage
        stage.compute.close()


def test_a_task_goes_out_and_its_result_comes_back(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    task_id = client.run(4, endpoint_id=endpoint_id, function_id=function_id)
    with pytest.raises(TaskPending):
        client.get_result(task_id)
    assert played.work(8) == [task_id]
    assert client.get_result(task_id) == 8
    task = played.compute.tasks[task_id]
    assert (task["status"], task["function_id"], task["n_results"]) == ("success", function_id, 1)


def test_the_agent_starts_one_child_for_each_configuration(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    for options in ({"workers": 1}, {"workers": 1}, {"workers": 2}):
        batch = client.create_batch(user_endpoint_config=options)
        batch.add(function_id, args=(1,))
        client.batch_run(endpoint_id, batch)
    commands = played.queues.taken(f"t.{endpoint_id}.commands")
    commands_sent = [json.loads(body) for body, _ in commands]
    assert [command["kwargs"]["user_opts"] for command in commands_sent] == [{"workers": 1}, {"workers": 2}]
    assert {command["globus_effective_identity"] for command in commands_sent} == {played.account.client_id}
    assert commands[0][1]["content_type"] == "application/json"
    children = [command["kwargs"]["amqp_creds"]["endpoint_id"] for command in commands_sent]
    assert [len(played.queues.taken(f"t.{child}.tasks")) for child in children] == [2, 1]


def test_status_follows_the_heartbeats(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    assert client.get_endpoint_status(endpoint_id)["status"] == "offline"
    played.heartbeat(endpoint_id, active=True)
    assert client.get_endpoint_status(endpoint_id)["status"] == "online"
    played.heartbeat(endpoint_id, heartbeat_period=0)
    assert client.get_endpoint_status(endpoint_id)["status"] == "offline"


def test_a_child_that_cannot_start_fails_its_tasks_and_the_next_submission(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=function_id)
    child_id = played.compute.tasks[task_id]["endpoint_id"]
    played.heartbeat(child_id, error="no such partition")
    with pytest.raises(Exception, match="no such partition"):
        client.get_result(task_id)
    with pytest.raises(globus_sdk.GlobusAPIError, match="no such partition") as refused:
        client.run(1, endpoint_id=endpoint_id, function_id=function_id)
    assert refused.value.http_status == 422


def test_too_large_a_request_is_refused(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    played.compute.rules.payload_limit_bytes = 100_000
    with pytest.raises(globus_sdk.GlobusAPIError) as refused:
        client.run("x" * 100_000, endpoint_id=endpoint_id, function_id=function_id)
    assert (refused.value.http_status, refused.value.code) == (413, "TASK_PAYLOAD_TOO_LARGE")
    assert len(played.compute.tasks) == 0


def test_too_many_requests_are_refused_with_a_time_to_retry(played: Played) -> None:
    played.compute.rules.rate = (2, 30.0)
    answers = [played.call("GET", "/v2/endpoints") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 31


def test_a_short_storm_is_ridden_out_by_the_client(played: Played) -> None:
    client = Client()
    played.compute.storm(503, count=2, path="functions$", Retry_After="0")
    assert client.register_function(double)
    statuses = [call.status for call in played.service.calls if call.path.endswith("functions")]
    assert statuses == [503, 503, 200]


def test_a_slow_answer_makes_a_task_exist_twice(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint_id = played.register()
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "0.5")
    client = Client()
    function_id = client.register_function(double)
    played.compute.slow_submissions(1.5)
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=function_id)
    assert len(played.compute.tasks) == 2
    assert task_id == list(played.compute.tasks)[1]  # the client knows of the second only


def test_a_dropped_result_leaves_its_task_unfinished(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    requests.post(f"{played.service.url}/_ctl/compute", json={"drop_results": 1})
    lost, kept = (client.run(1, endpoint_id=endpoint_id, function_id=function_id) for _ in range(2))
    assert played.work(2) == [lost, kept]
    assert client.get_result(kept) == 2
    assert client.get_task(lost)["pending"] is True
    assert played.compute.tasks[lost]["n_results"] == 1


def test_a_result_that_is_not_fetched_is_deleted(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=client.register_function(double))
    played.work(2)
    played.compute.rules.abandon_after_s = 0.0
    answer = client.get_task(task_id)
    assert (answer["pending"], answer["status"], "result" in answer) == (False, "failed", False)


def test_old_clients_are_refused(played: Played) -> None:
    Client()
    played.compute.rules.min_version = "99.0.0"
    with pytest.raises(VersionMismatch):
        Client()


def test_what_it_knows_lasts_over_a_restart(played: Played) -> None:
    endpoint_id, client = played.register(), Client()
    function_id = client.register_function(double)
    done, waiting = (client.run(1, endpoint_id=endpoint_id, function_id=function_id) for _ in range(2))
    result = Result(task_id=done, data=ComputeSerializer().serialize("kept"))
    played.queues.receive("results", messagepack.pack(result))
    group_id = played.compute.tasks[done]["task_group_id"]
    played.compute.close()
    played.compute = played.new_compute()
    assert client.get_result(done) == "kept"
    assert client.get_task(waiting)["pending"] is True
    assert played.compute.tasks_of(group_id) == [done]
    assert client.run(1, endpoint_id=endpoint_id, function_id=function_id)


def test_unknown_things_and_things_of_others_are_refused(played: Played) -> None:
    endpoint_id, group_id, unknown = played.register(), str(uuid.uuid4()), str(uuid.uuid4())
    submission = {"tasks": {unknown: ["payload"]}, "task_group_id": group_id}
    assert played.call("POST", f"/v3/endpoints/{endpoint_id}/submit", submission).status_code == 404
    assert played.call("POST", f"/v3/endpoints/{unknown}/submit", {"tasks": {}}).status_code == 404
    assert played.call("GET", f"/v2/tasks/{unknown}").status_code == 404
    played.call("POST", f"/v3/endpoints/{endpoint_id}/submit", {"tasks": {}, "task_group_id": group_id})
    assert played.call("GET", f"/v2/taskgroup/{group_id}").json() == {"taskgroup_id": group_id, "tasks": []}
    played.account = played.auth.add_service_account()
    assert played.call("GET", f"/v2/taskgroup/{group_id}").status_code == 404
    assert played.call("PUT", f"/v3/endpoints/{endpoint_id}", {}).status_code == 403
    assert requests.get(f"{played.service.url}/v2/endpoints").status_code == 401

"""Requests of many sites through one thread, on a simulated clock: what goes first, and whose error it is."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import globus_sdk
import pytest
import requests
from benchmarks.many_sites import MemoryJournal, SimulatedApi, SimulatedClock, WebService, simulate

from apps.base.errors import CrossfedError, EndpointProblem, TaskError
from workflows.globus.compute.api import same_runtime
from workflows.globus.compute.calls import TOGETHER, Call, CallTarget, sent_together
from workflows.globus.compute.failures import EndpointNotReady, Unreachable, classified
from workflows.globus.compute.rate_limit import RateLimiter
from workflows.globus.compute.service import ComputeService
from workflows.globus.remedies import LoginNeeded
from workflows.globus.transfer.errors import LoginMissing, refusal

DEEP = "[" * 100_000 + "]" * 100_000
SESSION = {
    "session_message": "log in again with alcf.anl.gov",
    "session_required_single_domain": ["alcf.anl.gov"],
    "session_required_policies": ["11111111-2222-3333-4444-555555555555", "$(rm -rf ~)"],
    "session_required_mfa": True,
}


class OddService(WebService):
    """The simulated service, with answers and refusals of a test's own."""

    def __init__(self, clock: SimulatedClock, answer: Callable[[str], str]) -> None:
        super().__init__(clock, train_s=1.0, request_s=0.25)
        self.answer, self.sites = answer, dict[str, str]()
        self.refuse: Callable[[str, dict[str, Any]], Exception | None] = lambda *_: None
        self.functions: list[dict[str, Any]] = []
        self.sizes: list[int] = []

    def register_function(self, document: dict[str, Any]) -> dict[str, str]:
        self.functions.append(document)
        return super().register_function(document) | {"function_uuid": f"{len(self.functions):032x}"}

    def submit(self, endpoint: str, document: dict[str, Any]) -> dict[str, Any]:
        self.sizes.append(sum(map(len, document["tasks"].values())))
        error = self.refuse(endpoint, document)
        if error:
            raise error
        answer = super().submit(endpoint, document)
        self.sites.update({task_id: endpoint for ids in answer["tasks"].values() for task_id in ids})
        return answer

    def get_task_batch(self, task_ids: list[str]) -> dict[str, Any]:
        records = super().get_task_batch(task_ids)["results"]
        ended = {i for i in task_ids if self.ends[i] <= self.clock.now}
        odd = {i: {"status": "success", "result": "11\n" + json.dumps(self.answer(self.sites[i]))} for i in ended}
        return {"results": records | odd}

    def get_endpoint(self, _: str) -> Any:
        return SimpleNamespace(data={"high_assurance": True})


class Scene:
    """A service over an odd web service; the journal may be that of an earlier driver."""

    def __init__(self, answer: Callable[[str], str] = lambda _: '{"result": 7}') -> None:
        self.clock, self.journal = SimulatedClock(), MemoryJournal()
        self.web = OddService(self.clock, answer)
        self.service = self.driver()

    def driver(self) -> ComputeService:
        api = SimulatedApi(self.web, self.clock)
        return ComputeService(lambda: self.web, self.journal, api, self.clock.monotonic)  # type: ignore[arg-type,return-value]

    def ask(self, *endpoints: str) -> list[Any]:
        """Return the results or errors of one call to each endpoint."""
        calls = [Call(f"key of {e}-{n}", CallTarget(f"site {e}", e), "f", "r") for n, e in enumerate(endpoints)]
        futures = [self.service.submit(call) for call in calls]
        while not all(future.done() for future in futures):
            self.clock.wait(self.service.step())
            assert self.clock.now < 600
        return [future.exception() or future.result() for future in futures]

    def ended(self) -> list[tuple[str, str]]:
        return [(record["site"], record["state"]) for record in self.journal.events("compute_ended")]


def api_error(status: int, code: str, kind: type = globus_sdk.GlobusAPIError, **more: Any) -> Any:
    response = requests.Response()
    response.status_code, response._content = status, json.dumps({"code": code, "message": "no", **more}).encode()
    response.headers["Content-Type"] = "application/json"
    response.request = requests.Request("GET", "https://localhost").prepare()
    return kind(response)


def test_a_round_of_a_minute_at_64_sites_takes_less_than_100_s():
    found = simulate(64, files=True, rounds=2)
    assert found.round_s < 100 and found.submitted_s < 40
    assert found.worst_late_s < 15
    assert found.most <= 18
    assert found.requests["submit looks"] > 64, "looks are late, not left out"


@pytest.mark.parametrize(
    "odd", [DEEP, '{"a":' * 5000, "1" * 5000, "\ud800", '{"result": 1, "worker": ' + DEEP + "}", ""]
)
def test_an_odd_answer_of_one_site_ends_its_own_call_only_and_is_not_adopted(odd: str):
    scene = Scene(lambda endpoint: odd if endpoint == "evil" else '{"result": "honest work"}')
    evil, *good = scene.ask("evil", "one", "two")
    assert isinstance(evil, CrossfedError) and evil.site == "site evil"
    assert good == ["honest work"] * 2
    assert sorted(site for site, _ in scene.ended()) == ["site evil", "site one", "site two"]
    assert scene.driver().log.open == {}, "the next driver finds no task to adopt"


def test_an_error_within_one_call_ends_that_call_only(monkeypatch: pytest.MonkeyPatch):
    scene, update = Scene(), Call.update

    def broken(call: Call, *arguments: Any) -> Any:
        if call.target.site == "site evil" and arguments[1].get("result"):
            raise ZeroDivisionError
        return update(call, *arguments)

    monkeypatch.setattr(Call, "update", broken)
    evil, good = scene.ask("evil", "good")
    assert isinstance(evil, TaskError) and "ZeroDivisionError" in str(evil)
    assert good == 7 and ("site evil", "TaskError") in scene.ended()


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_a_refusal_of_one_endpoint_ends_its_own_call_only(status: int):
    scene = Scene()
    scene.web.refuse = lambda endpoint, _: api_error(status, "NO") if endpoint == "evil" else None
    evil, good = scene.ask("evil", "good")
    assert isinstance(evil, CrossfedError) and evil.site == "site evil"
    assert good == 7


def test_an_endpoint_that_has_worked_is_waited_for_whatever_its_words():
    """Its last child was killed, and is taken for alive for some heartbeats."""
    scene = Scene()
    first = scene.ask("one")
    until = scene.clock.now + 100
    scene.web.refuse = lambda *_: api_error(422, "NEW", message="in other words") if scene.clock.now < until else None
    assert [*first, *scene.ask("one")] == [7, 7]
    scene.web.refuse = lambda *_: api_error(422, "NEW", message="for good")
    began = scene.clock.now
    (error,) = scene.ask("one", "one")[:1]
    assert isinstance(error, EndpointProblem) and "for good" in str(error)
    assert 180 <= scene.clock.now - began < 300


def test_a_login_that_is_not_accepted_belongs_to_no_site():
    scene = Scene()
    scene.web.refuse = lambda *_: api_error(401, "UNAUTHENTICATED")
    with pytest.raises(LoginNeeded):
        scene.ask("one", "two")


@pytest.mark.parametrize("error", [TypeError(), KeyError("results"), ValueError("no JSON"), RecursionError()])
def test_an_answer_of_the_service_that_is_not_understood_is_asked_for_again(error: Exception):
    assert isinstance(classified(error), Unreachable)


def test_calls_to_one_endpoint_go_in_one_request():
    scene = Scene()
    assert scene.ask(*["one"] * 5, "two") == [7] * 6
    assert scene.web.sizes == [5, 1]


def test_of_calls_that_are_refused_together_only_the_bad_one_fails():
    scene = Scene()

    def refuse(endpoint: str, document: dict[str, Any]) -> Exception | None:
        (payloads,) = document["tasks"].values()
        return api_error(413, "TASK_PAYLOAD_TOO_LARGE") if any("large" in payload for payload in payloads) else None

    scene.web.refuse = refuse
    target = CallTarget("site", "one")
    futures = [scene.service.submit(Call(text, target, "f", text)) for text in ("a", "large", "b")]
    while not all(future.done() for future in futures):
        scene.clock.wait(scene.service.step())
    assert [future.exception() is None for future in futures] == [True, False, True]


def test_what_is_submitted_together_is_of_one_endpoint_and_not_too_large():
    def call(endpoint: str = "e", size: int = 1, **config: int) -> Call:
        return Call(endpoint, CallTarget("s", endpoint, config), "f", "x" * size)

    same, other, values, large = call(), call("other"), call(nodes=2), call(size=5_000_000)
    assert sent_together([call(), same, other, values, large])[1:] == [same]
    assert len(sent_together([call() for _ in range(99)])) == TOGETHER


def test_an_endpoint_of_high_assurance_gets_a_function_of_its_own():
    scene = Scene()

    def refuse(endpoint: str, document: dict[str, Any]) -> Exception | None:
        (function_id,) = document["tasks"]
        own = scene.web.functions[int(function_id.replace("-", ""), 16) - 1].get("ha_endpoint_id")
        return api_error(403, "FUNCTION_NOT_PERMITTED") if own != (endpoint if endpoint == "strict" else None) else None

    scene.web.refuse = refuse
    assert scene.ask("strict", "plain", "strict") == [7, 7, 7]
    assert [document.get("ha_endpoint_id") for document in scene.web.functions] == [None, "strict"]


def test_a_driver_on_another_machine_gets_the_same_child(monkeypatch: pytest.MonkeyPatch):
    before = same_runtime()
    monkeypatch.setattr(platform, "node", lambda: "another")
    monkeypatch.setattr(platform, "release", lambda: "7.0")
    assert same_runtime() == before
    scene, sent = Scene(), []
    scene.web.refuse = lambda _, document: sent.append(document["user_runtime"])
    scene.ask("one")
    assert sent[0]["platform"]["node"] == before.platform.node != platform.node()


def test_a_stop_ends_the_wait_for_the_limit_at_once():
    limiter = RateLimiter(1, period_s=3600.0)
    assert limiter()
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(limiter()))
    waiting.start()
    limiter.stop()
    waiting.join(60)
    assert answers == [False]


def test_less_important_requests_leave_room():
    now = [0.0]
    limiter = RateLimiter(18, 10.0, lambda: now[0])
    for now[0] in range(9):
        assert limiter()
    assert [limiter.delay_s(reserve) for reserve in (0, 6, 9, 12)] == [0, 0, 2, 5]


@pytest.mark.parametrize("service_account", [False, True])
def test_a_session_policy_is_told_with_its_remedy(service_account: bool, monkeypatch: pytest.MonkeyPatch):
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.setenv(name, "x") if service_account else monkeypatch.delenv(name, raising=False)
    refused = {"code": "AuthorizationRequired", "authorization_parameters": SESSION}
    compute = classified(api_error(403, kind=globus_sdk.ComputeAPIError, **refused))
    transfer = refusal(api_error(403, kind=globus_sdk.TransferAPIError, **refused))
    assert isinstance(compute, EndpointProblem) and isinstance(transfer, LoginMissing)
    for error in (compute, transfer):
        assert error.what == "Globus requires another login: log in again with alcf.anl.gov"
        assert error.remedy is not None
        if service_account:
            assert error.remedy.startswith("A service account cannot give it. Ask the owner")
        else:
            assert error.remedy == (
                "Log in: python workflows/login.py --session domain=alcf.anl.gov"
                " --session policy=11111111-2222-3333-4444-555555555555 --session mfa"
            )


@pytest.mark.parametrize("folder", ["/home/u", "/lustre/orion/proj-shared/abc123/" + "a_long_name/" * 20])
def test_an_endpoint_whose_last_child_is_taken_for_alive_is_waited_for_wherever_it_lies(folder: str):
    """What the agent (globus_compute_endpoint/cli.py) says, and how the service hands it on."""
    text = (
        f"no child endpoint: Failed to start or unexpected error:\n  (MessageSystemExit) \n"
        f"        PID path: {folder}/uep.63ce1d45/daemon.pid (PID: 2118)\n"
        "   Last modified: 1795942150.719 (Sun Nov 29 08:49:10 2026)\n    Current time: 1795942163.326 (Sun Nov 29"
        " 08:49:23 2026)\nPID file content:\n2118\n\nAnother instance of this endpoint is running.  (Perhaps on another"
        " login node?)  Refusing to start.  If this is not correct, then remove the PID file before starting again."
    )
    error = api_error(422, kind=globus_sdk.ComputeAPIError, code="SEMANTICALLY_INVALID", message=text)
    assert isinstance(classified(error), EndpointNotReady)

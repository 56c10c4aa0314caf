"""Tests of the loopback HTTP service with a real client: routes, record of calls, every kind of fault."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests

from facilities.globus.http import Answer, HttpService, Request, refuse


def one_number_more(numbers: Iterator[int], request: Request) -> dict[str, int]:
    if request.query.get("refused"):
        raise refuse(409, "Conflict", "asked for it", Retry_After="7")
    return {"number": next(numbers)}


@pytest.fixture
def service() -> Iterator[HttpService]:
    numbers = itertools.count(1)
    with HttpService() as running:
        running.route("POST", "/numbers", lambda request: one_number_more(numbers, request))
        running.route(
            "GET", "/files/([^/]+)", lambda _, name: Answer(name.encode(), 200, {"Content-Type": "text/plain"})
        )
        running.route("GET", "/broken", lambda _: 1 // 0)
        yield running


def test_routes_answer_with_json_bytes_and_refusals(service: HttpService) -> None:
    assert requests.post(f"{service.url}/numbers").json() == {"number": 1}
    assert requests.get(f"{service.url}/files/a%20b").content == b"a b"
    refused = requests.post(f"{service.url}/numbers?refused=1")
    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (409, "Conflict", "7")
    assert requests.get(f"{service.url}/nowhere").status_code == 404
    assert "ZeroDivisionError" in requests.get(f"{service.url}/broken").text


def test_a_call_is_recorded_without_its_secrets(service: HttpService) -> None:
    body, headers = {"password": "s3cret"}, {"Authorization": "Bearer s3cret"}
    requests.post(f"{service.url}/numbers?code=s3cret", data=body, headers=headers)
    recorded = requests.get(f"{service.url}/_ctl/calls").json()
    assert [(call["method"], call["path"], call["status"]) for call in recorded] == [("POST", "/numbers", 200)]
    assert "s3cret" not in json.dumps(recorded) + repr(service.calls)


def test_a_fault_occurs_as_often_and_only_where_it_was_set(service: HttpService) -> None:
    service.fault(r"^/numbers$", method="POST", status=503, count=2, headers={"Retry-After": "1"})
    assert requests.get(f"{service.url}/files/x").status_code == 200
    answers = [requests.post(f"{service.url}/numbers") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["Retry-After"] == "1"
    assert answers[2].json() == {"number": 1}


def test_a_fault_without_count_lasts_until_cleared(service: HttpService) -> None:
    service.fault("numbers", status=500, count=-1)
    assert {requests.post(f"{service.url}/numbers").status_code for _ in range(5)} == {500}
    service.clear()
    assert requests.post(f"{service.url}/numbers").json() == {"number": 1}
    assert service.count_calls("numbers") == 1


def test_a_dropped_connection_before_or_after_the_work(service: HttpService) -> None:
    service.fault("numbers", drop=True)
    with pytest.raises(requests.ConnectionError):
        requests.post(f"{service.url}/numbers")
    service.fault("numbers", drop=True, after=True)
    with pytest.raises(requests.ConnectionError):
        requests.post(f"{service.url}/numbers")
    assert requests.post(f"{service.url}/numbers").json() == {"number": 2}  # only the second drop had done its work
    assert [call.status for call in service.calls] == [0, 0, 200]


def test_a_slow_answer_has_done_its_work(service: HttpService) -> None:
    service.fault("numbers", delay_s=2, after=True)
    with pytest.raises(requests.Timeout):
        requests.post(f"{service.url}/numbers", timeout=0.3)
    assert requests.post(f"{service.url}/numbers").json() == {"number": 2}


def test_another_process_may_switch_faults(service: HttpService) -> None:
    requests.post(f"{service.url}/_ctl/fault", json={"path": "numbers", "status": 429})
    assert requests.post(f"{service.url}/numbers").status_code == 429
    requests.post(f"{service.url}/_ctl/clear")
    assert service.calls == []


def test_a_stopped_service_cuts_its_connections_and_comes_back_on_its_port(service: HttpService) -> None:
    with requests.Session() as session:
        session.post(f"{service.url}/numbers")
        url = service.url
        service.stop()
        with pytest.raises(requests.ConnectionError):
            session.post(f"{url}/numbers")
        service.start()
        assert service.url == url
        assert session.post(f"{url}/numbers").json() == {"number": 2}


def test_it_answers_as_a_proxy_for_its_own_hosts_only(service: HttpService) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", service.port)) as connection:
        connection.request("POST", "http://localhost:5000/numbers")
        assert json.loads(connection.getresponse().read()) == {"number": 1}
        connection.request("POST", "http://example.org/numbers")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (502, "NotAProxy")


def test_waiting_for_calls(service: HttpService) -> None:
    assert not service.wait_for_calls("numbers", limit_s=0)
    requests.post(f"{service.url}/numbers")
    assert service.wait_for_calls("numbers", method="POST")
    assert not service.wait_for_calls("numbers", method="GET", limit_s=0)

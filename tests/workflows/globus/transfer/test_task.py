"""A transfer is handed in once and followed by its status, with the genuine client."""

from __future__ import annotations

import string
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.transfer_fixtures import TransferFacility
from hypothesis import given
from hypothesis import strategies as st

from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import (
    ConsentMissing,
    LoginMissing,
    TransferCanceled,
    TransferDetached,
    TransferFailed,
    TransferRefused,
    consent_missing,
    is_transient,
    refusal,
    retry_after_s,
)
from workflows.globus.transfer.task import (
    LABEL_LENGTH,
    TransferRequest,
    clean_label,
    delete,
    follow,
    new_submission_id,
    submit,
    trouble_of,
)

QUICK = Backoff(0.02, 0.05, 0.02, 0.1, stall_s=0.3, overdue_s=0.3)


class Ends:
    """Two collections and the reported troubles."""

    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility, self.transfer = facility, facility.transfer
        self.one, self.two = (facility.transfer.add_collection(root / name, name) for name in ("one", "two"))
        (self.one.folder / "a.bin").write_bytes(b"a" * 300_000)
        self.stop = threading.Event()
        self.troubles: list[str | None] = []
        self.looks: list[tuple[str, str | None]] = []

    def caller(self, backoff: Backoff = QUICK) -> RetryingClient:
        return RetryingClient(self.facility.client, backoff, self.stop, self.troubles.append)

    def request(self, *names: str, deadline_s: float = 60) -> TransferRequest:
        files = tuple((f"/{name}", f"/in/{name}") for name in names or ("a.bin",))
        return TransferRequest(self.one.id, self.two.id, files, "a label", deadline_s)

    def look(self, task: Any, trouble: str | None) -> None:
        self.looks.append((task["status"], trouble))

    def run(self, request: TransferRequest, backoff: Backoff = QUICK) -> Any:
        caller = self.caller(backoff)
        return follow(caller, submit(caller, request, new_submission_id(caller)), self.look)


@pytest.fixture
def ends(transfer_facility: TransferFacility, tmp_path: Path) -> Ends:
    return Ends(transfer_facility, tmp_path)


def test_many_files_are_one_task(ends: Ends):
    (ends.one.folder / "b.bin").write_bytes(b"b" * 1000)
    outcome = ends.run(ends.request("a.bin", "b.bin"))
    assert (outcome.nbytes, outcome.faults, outcome.missing) == (301_000, 0, ())
    assert (ends.two.folder / "in" / "b.bin").read_bytes() == b"b" * 1000
    assert len(ends.transfer.tasks) == 1
    assert ends.looks[-1] == ("SUCCEEDED", None)


def test_one_name_one_task(ends: Ends):
    caller = ends.caller()
    name = new_submission_id(caller)
    assert uuid.UUID(name)
    assert submit(caller, ends.request(), name) == submit(caller, ends.request(), name)
    assert submit(caller, ends.request(), new_submission_id(caller)) != ends.transfer.tasks[0].id
    assert len(ends.transfer.tasks) == 2


def test_missing_files_are_reported_and_delay_nothing(ends: Ends):
    outcome = ends.run(ends.request("nothing.bin", "a.bin"))
    assert outcome.missing == ("/nothing.bin",)
    assert (ends.two.folder / "in" / "a.bin").exists()


def test_a_failure_has_the_reason_and_the_last_event(ends: Ends):
    ends.transfer.fault("drop")
    ends.transfer.fault("partial")
    with pytest.raises(TransferFailed) as caught:
        ends.run(ends.request())
    assert "ENDPOINT_ERROR: ended in the middle of a.bin" in str(caught.value)
    assert ends.transfer.tasks[0].id in str(caught.value)


def test_a_task_that_the_service_does_not_end_is_cancelled_after_its_deadline(ends: Ends):
    """The stand-in ends it automatically; its status is delayed here."""
    ends.two.expired = True
    caller = ends.caller()
    task_id = submit(caller, ends.request(deadline_s=600), new_submission_id(caller))
    [task] = ends.transfer.tasks
    said = {**task.view(), "deadline": "2020-01-01T00:00:00+00:00", "status": "ACTIVE", "nice_status": "OK"}
    task.view = lambda: said  # type: ignore[method-assign]
    with pytest.raises(TransferFailed, match="is past its deadline"):
        follow(caller, task_id, ends.look)
    assert task.fatal_error == {"code": "CANCELED", "description": "canceled on request"}


def test_a_cancelled_task_is_an_error_of_its_own(ends: Ends):
    ends.transfer.fault("stall")
    caller = ends.caller(Backoff(0.02, 0.05))
    task_id = submit(caller, ends.request(), new_submission_id(caller))
    ends.facility.client().cancel_task(task_id)
    with pytest.raises(TransferCanceled, match="CANCELED: canceled on request"):
        follow(caller, task_id, ends.look)


def test_deleting_takes_what_is_there(ends: Ends):
    caller = ends.caller()
    follow(caller, delete(caller, ends.one.id, ("/a.bin", "/gone.bin"), "clean up!", 60), ends.look)
    assert list(ends.one.folder.iterdir()) == []
    assert ends.transfer.tasks[0].label == "clean up_"


def test_a_call_is_made_until_it_is_answered(ends: Ends):
    ends.facility.service.fault("submission_id", status=500, count=5)
    assert uuid.UUID(new_submission_id(ends.caller()))
    assert ends.troubles[-1] is None and len(ends.troubles) > 1
    assert ends.troubles[0] is not None and "500" in ends.troubles[0]


def test_a_call_ends_with_the_driver(ends: Ends):
    ends.stop.set()
    with pytest.raises(TransferDetached, match="A resume follows the transfer"):
        new_submission_id(ends.caller())
    assert ends.facility.service.calls == []


def test_a_client_that_cannot_be_made_yet_is_made_later(ends: Ends):
    from globus_sdk import GlobusConnectionError

    made: list[Any] = [GlobusConnectionError("no network", OSError()), ends.facility.client()]

    def make() -> Any:
        result = made.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert uuid.UUID(new_submission_id(RetryingClient(make, QUICK, ends.stop, ends.troubles.append)))
    assert made == []


@pytest.mark.parametrize(
    ("task", "trouble"),
    [
        ({"status": "ACTIVE", "nice_status": "OK"}, None),
        ({"status": "ACTIVE", "nice_status": None}, None),
        ({"status": "ACTIVE", "nice_status": "Queued"}, None),
        ({"status": "SUCCEEDED", "nice_status": None}, None),
        ({"status": "FAILED", "nice_status": "TIMEOUT"}, None),
        ({"status": "ACTIVE", "nice_status": "TIMEOUT", "nice_status_details": "no data"}, "TIMEOUT: no data"),
        ({"status": "ACTIVE", "nice_status": "TIMEOUT", "nice_status_short_description": "TIMEOUT"}, "TIMEOUT"),
    ],
)
def test_trouble_as_globus_names_it(task: dict[str, Any], trouble: str | None):
    assert trouble_of(task) == trouble


@given(st.text())
def test_labels_are_of_the_characters_that_globus_admits(text: str):
    label = clean_label(text)
    assert len(label) == min(len(text), LABEL_LENGTH)
    assert set(label) <= set(string.ascii_letters + string.digits + " -_,")


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 2), (2, 4), (6, 64), (7, 120), (10_000, 120)])
def test_back_off_doubles_up_to_its_limit(failures: int, wait_s: float):
    assert Backoff(back_off_s=2, longest_back_off_s=120).back_off(failures) == wait_s


class Answered:
    """What globus-sdk makes an error from."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        import json

        import requests

        self.response = requests.Response()
        self.response.status_code = status
        self.response._content = json.dumps(body).encode()
        self.response.headers.update({"Content-Type": "application/json", **(headers or {})})
        self.response.request = requests.Request("POST", "http://x/", {"Authorization": "Bearer s3cret"}).prepare()

    def error(self) -> Any:
        from globus_sdk import TransferAPIError

        return TransferAPIError(self.response)


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (500, "X", True),
        (502, "ExternalError.Y", True),
        (503, "X", True),
        (429, "X", True),
        (400, "X", False),
        (401, "X", False),
        (403, "X", False),
        (404, "X", False),
        (409, "X", False),
        (409, "ClientError.Conflict.TooManyPendingJobs", True),
    ],
)
def test_which_answers_pass(status: int, code: str, passes: bool):
    assert is_transient(Answered(status, {"code": code, "message": "m"}).error()) is passes


def test_other_errors_do_not_pass():
    assert not is_transient(ValueError())


@pytest.mark.parametrize(
    ("status", "code", "kind", "text"),
    [
        (401, "AuthenticationFailed", LoginMissing, "does not accept the login. Log in: python workflows/login.py"),
        (403, "EndpointPermissionDenied", TransferRefused, "Ask the collection's owner"),
        (404, "EndpointNotFound", TransferRefused, "Check the collection's id"),
        (400, "ClientError.AuthenticationFailed.CredentialsExpired", TransferRefused, "Renew the collection's"),
        (400, "ClientError.BadRequest", TransferRefused, "app.globus.org/activity"),
    ],
)
def test_refusals_come_with_a_remedy_and_without_secrets(status: int, code: str, kind: type, text: str):
    error = refusal(Answered(status, {"code": code, "message": "said so"}).error())
    assert type(error) is kind
    assert text in str(error)
    assert "s3cret" not in str(error)


def test_the_command_for_a_missing_consent_names_each_collection():
    ids = sorted(str(uuid.uuid4()) for _ in range(2))
    scope = "urn:globus:auth:scope:transfer.api.globus.org:all[*https://auth.globus.org/scopes/{}/data_access]"
    body = {"code": "ConsentRequired", "message": "m", "required_scopes": [scope.format(found) for found in ids]}
    error = refusal(Answered(403, body).error())
    assert isinstance(error, ConsentMissing)
    assert error.remedy == f"Agree once: python workflows/login.py --collection {ids[0]} --collection {ids[1]}"
    assert "consent to use a collection" in consent_missing(["something else"]).what


@pytest.mark.parametrize(("said", "wait_s"), [("7", 7.0), ("Wed, 21 Oct 2026", 0.0), ("", 0.0)])
def test_how_long_the_service_wants_to_be_left_alone(said: str, wait_s: float):
    assert retry_after_s(Answered(429, {"code": "c", "message": "m"}, {"Retry-After": said}).error()) == wait_s
    assert retry_after_s(ValueError()) == 0.0

"""Tests that the stand-in of Globus Transfer treats the real client as Globus does, also in odd cases."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from patience import patience

from facilities.globus.transfer_fixtures import TransferFacility

MIB = 1 << 20
FINAL = ("SUCCEEDED", "FAILED")


class Scene:
    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility, self.transfer = facility, facility.transfer
        self.one, self.two = (facility.transfer.add_collection(root / name, name) for name in ("one", "two"))
        self.client = facility.client()
        self.file = self.one.folder / "data" / "a.bin"
        self.file.parent.mkdir()
        self.file.write_bytes(os.urandom(MIB))

    def submit(self, source: str = "/data/a.bin", destination: str = "/in/a.bin", **settings: Any) -> str:
        from globus_sdk import TransferData

        item = {
            key: settings.pop(key)
            for key in ("external_checksum", "checksum_algorithm", "recursive")
            if key in settings
        }
        data = TransferData(self.one.id, self.two.id, **settings)
        data.add_item(source, destination, **item)
        return self.client.submit_transfer(data)["task_id"]

    def ended(self, task_id: str) -> Any:
        wait_until(lambda: self.client.get_task(task_id)["status"] in FINAL)
        return self.client.get_task(task_id)

    def arrived(self, path: str = "in/a.bin") -> bool:
        return (self.two.folder / path).read_bytes() == self.file.read_bytes()


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + patience(30)
    while not condition():
        assert time.monotonic() < until, "the condition is not true after 30 s"
        time.sleep(0.01)


@pytest.fixture
def scene(transfer_facility: TransferFacility, tmp_path: Path) -> Iterator[Scene]:
    yield Scene(transfer_facility, tmp_path)
    transfer_facility.transfer.release()


def refused(call: Callable[[], Any]) -> Any:
    """Return the error of a call."""
    from globus_sdk import TransferAPIError

    with pytest.raises(TransferAPIError) as caught:
        call()
    return caught.value


def test_a_folder_is_copied(scene: Scene):
    (scene.file.parent / "b.bin").write_bytes(b"b")
    task = scene.ended(scene.submit("/data/", "/in/", recursive=True))
    assert (task["status"], task["files"], task["files_transferred"]) == ("SUCCEEDED", 2, 2)
    assert task["bytes_transferred"] == MIB + 1
    assert scene.arrived()
    assert len(list(scene.client.task_successful_transfers(task["task_id"]))) == 2
    assert [event["code"] for event in scene.client.task_event_list(task["task_id"])] == ["SUCCEEDED", "STARTED"]


def test_equal_files_are_skipped_by_checksum(scene: Scene):
    scene.ended(scene.submit())
    task = scene.ended(scene.submit(sync_level="checksum"))
    assert (task["files_skipped"], task["bytes_transferred"]) == (1, 0)


def test_one_submission_id_is_one_task(scene: Scene):
    name = scene.client.get_submission_id()["value"]
    assert scene.submit(submission_id=name) == scene.submit(submission_id=name)
    assert len(scene.transfer.tasks) == 1


def test_a_request_that_is_sent_again_by_the_sdk_is_one_task(scene: Scene):
    scene.facility.service.fault("/transfer$", method="POST", drop=True, after=True)
    assert scene.ended(scene.submit())["status"] == "SUCCEEDED"
    assert len(scene.transfer.tasks) == 1


def test_wrong_bytes_are_only_detected_with_checksums(scene: Scene):
    scene.transfer.fault("corrupt")
    task = scene.ended(scene.submit())
    assert task["status"] == "SUCCEEDED" and not scene.arrived()
    scene.transfer.fault("corrupt")
    task = scene.ended(scene.submit(verify_checksum=True))
    assert (task["status"], task["faults"]) == ("SUCCEEDED", 1) and scene.arrived()


def test_a_checksum_of_the_caller(scene: Scene):
    right = hashlib.sha256(scene.file.read_bytes()).hexdigest()
    assert scene.ended(scene.submit(external_checksum=right, checksum_algorithm="SHA256"))["status"] == "SUCCEEDED"
    task = scene.ended(scene.submit(external_checksum="0" * 64, checksum_algorithm="SHA256"))
    assert task["fatal_error"]["code"] == "EXTERNAL_CHECKSUM_MISMATCH"


def test_task_wait_returns_true_for_a_task_that_failed(scene: Scene):
    scene.transfer.fault("fail")
    task = scene.ended(scene.submit())
    assert task["status"] == "FAILED"
    assert scene.client.task_wait(task["task_id"], timeout=1, polling_interval=1) is True


def test_a_missing_file_keeps_a_task_active_until_its_deadline(scene: Scene):
    task_id = scene.submit("/nothing", deadline=datetime.now(UTC) + timedelta(hours=1))
    wait_until(lambda: scene.client.get_task(task_id)["faults"] > 1)
    task = scene.client.get_task(task_id)
    assert (task["status"], task["nice_status"], task["is_ok"]) == ("ACTIVE", "FILE_NOT_FOUND", False)
    scene.client.update_task(task_id, {"DATA_TYPE": "task", "deadline": datetime.now(UTC).isoformat()})
    assert scene.ended(task_id)["fatal_error"]["code"] == "EXPIRED"


def test_a_missing_file_may_be_skipped(scene: Scene):
    task = scene.ended(scene.submit("/nothing", skip_source_errors=True))
    assert (task["status"], task["subtasks_skipped_errors"]) == ("SUCCEEDED", 1)
    [row] = scene.client.task_skipped_errors(task["task_id"])
    assert (row["source_path"], row["error_code"]) == ("/nothing", "FILE_NOT_FOUND")


def test_a_reader_sees_part_of_a_file_on_its_way(scene: Scene):
    scene.two.bandwidth = MIB
    task_id = scene.submit()
    path = scene.two.folder / "in" / "a.bin"
    wait_until(lambda: path.exists() and 0 < path.stat().st_size < MIB)
    assert scene.ended(task_id)["status"] == "SUCCEEDED" and scene.arrived()


def test_a_partial_write_leaves_part_of_the_file(scene: Scene):
    scene.transfer.fault("partial")
    assert scene.ended(scene.submit())["fatal_error"]["code"] == "ENDPOINT_ERROR"
    assert 0 < (scene.two.folder / "in" / "a.bin").stat().st_size < MIB


def test_expired_credentials_make_a_task_inactive_until_they_are_renewed(scene: Scene):
    scene.two.expired = True
    task_id = scene.submit()
    wait_until(lambda: scene.client.get_task(task_id)["status"] == "INACTIVE")
    assert scene.client.task_wait(task_id, timeout=1, polling_interval=1) is True
    scene.two.expired = False
    assert scene.ended(task_id)["status"] == "SUCCEEDED"


def test_an_offline_collection_is_tried_again(scene: Scene):
    scene.two.online = False
    task_id = scene.submit()
    wait_until(lambda: scene.client.get_task(task_id)["nice_status"] == "CONNECTION_FAILED")
    error = refused(lambda: scene.client.operation_ls(scene.two.id, path="/"))
    assert (error.http_status, error.code) == (502, "ExternalError.DirListingFailed.GCDisconnected")
    assert scene.facility.service.wait_for_calls("/ls")
    assert scene.facility.service.count_calls("/ls") == 1, "the SDK does not ask again"
    scene.two.online = True
    assert scene.ended(task_id)["status"] == "SUCCEEDED"


def test_three_at_once_and_the_others_queued_in_their_order(scene: Scene):
    scene.transfer.fault("stall")
    tasks = [scene.submit(destination=f"/in/{number}") for number in range(5)]
    wait_until(lambda: [task.nice_status for task in scene.transfer.tasks].count("TIMEOUT") == 3)
    assert [scene.client.get_task(task)["nice_status"] for task in tasks[3:]] == ["Queued", "Queued"]
    assert scene.client.cancel_task(tasks[0])["code"] == "Canceled"
    wait_until(lambda: scene.client.get_task(tasks[3])["nice_status"] == "TIMEOUT")
    scene.transfer.release()
    assert [scene.ended(task)["status"] for task in tasks] == ["FAILED", *["SUCCEEDED"] * 4]
    assert len(list(scene.client.task_list())) == 5


def test_a_stall_has_faults_and_no_bytes(scene: Scene):
    scene.transfer.fault("stall")
    task_id = scene.submit()
    wait_until(lambda: scene.client.get_task(task_id)["faults"] > 2)
    assert scene.client.get_task(task_id)["bytes_transferred"] == 0
    scene.transfer.release()
    assert scene.ended(task_id)["status"] == "SUCCEEDED"
    assert scene.client.cancel_task(task_id)["code"] == "TaskComplete"


def test_tasks_outlive_a_restart_of_the_service(scene: Scene):
    task_id = scene.submit()
    scene.facility.service.stop()
    scene.facility.service.start()
    assert scene.ended(task_id)["status"] == "SUCCEEDED"
    scene.client.update_task(task_id, {"DATA_TYPE": "task", "label": "renamed"})
    assert scene.client.get_task(task_id)["label"] == "renamed"


def test_a_mapped_collection_wants_a_consent(scene: Scene):
    scene.one.data_access = True
    error = refused(scene.submit)
    assert (error.http_status, error.code) == (403, "ConsentRequired")
    assert scene.one.id in error.info.consent_required.required_scopes[0]
    scene.client.add_app_data_access_scope([scene.one.id])
    scene.client._app.login(force=True)
    assert scene.ended(scene.submit())["status"] == "SUCCEEDED"
    assert scene.client.get_endpoint(scene.one.id)["entity_type"] == "GCSv5_mapped_collection"


def test_the_access_list_of_a_guest_collection(scene: Scene):
    scene.two.allowed = {"another account"}
    assert refused(scene.submit).code == "EndpointPermissionDenied"
    scene.two.allowed.add(scene.facility.account.client_id)
    assert scene.ended(scene.submit())["status"] == "SUCCEEDED"


def test_a_bare_token_runs_out_and_an_app_renews(scene: Scene):
    from globus_sdk import AccessTokenAuthorizer, TransferClient

    token = scene.client._app.get_authorizer("transfer.api.globus.org").access_token
    bare = TransferClient(authorizer=AccessTokenAuthorizer(token))
    scene.facility.auth.expire_tokens()
    assert refused(bare.get_submission_id).http_status == 401
    assert scene.client.get_submission_id()["value"]


def test_a_collection_is_not_left(scene: Scene):
    task = scene.ended(scene.submit("/../two/../../etc/passwd"))
    assert task["fatal_error"]["code"] == "PERMISSION_DENIED"
    assert refused(lambda: scene.client.operation_ls(scene.one.id, path="/../..")).http_status == 403
    assert refused(lambda: scene.client.get_endpoint("0" * 36)).code == "EndpointNotFound"


def test_file_operations(scene: Scene):
    client, one = scene.client, scene.one.id
    client.operation_mkdir(one, "/made")
    error = refused(lambda: client.operation_mkdir(one, "/made"))
    assert (error.http_status, error.code) == (502, "ExternalError.MkdirFailed.Exists")
    client.operation_rename(one, oldpath="/data/a.bin", newpath="/made/b.bin")
    assert [(row["name"], row["type"], row["size"]) for row in client.operation_ls(one, path="/made")] == [
        ("b.bin", "file", MIB)
    ]
    assert client.operation_stat(one, path="/made/b.bin")["size"] == MIB
    assert refused(lambda: client.operation_stat(one, path="/data/a.bin")).http_status == 404


def test_files_are_deleted(scene: Scene):
    from globus_sdk import DeleteData

    data = DeleteData(scene.one.id, ignore_missing=True)
    data.add_item("/data/a.bin")
    data.add_item("/data/nothing")
    assert scene.ended(scene.client.submit_delete(data)["task_id"])["status"] == "SUCCEEDED"
    assert not scene.file.exists()


def https(scene: Scene, path: str, method: str = "GET", token: str = "", **headers: str) -> bytes:
    address = scene.client.get_endpoint(scene.one.id)["https_server"] + path
    named = {"Authorization": f"Bearer {token}", **headers}
    content = b"new" if method == "PUT" else None
    with urllib.request.urlopen(urllib.request.Request(address, content, named, method=method)) as answer:
        return answer.read()


def test_https_takes_a_token_of_the_collection_itself(scene: Scene):
    scene.one.https = True
    app = scene.client._app
    app.add_scope_requirements({scene.one.id: [f"https://auth.globus.org/scopes/{scene.one.id}/https"]})
    token = app.get_authorizer(scene.one.id).access_token
    assert https(scene, "/data/a.bin", token=token) == scene.file.read_bytes()
    assert https(scene, "/data/a.bin", token=token, Range="bytes=10-19") == scene.file.read_bytes()[10:20]
    https(scene, "/data/new/c.txt", "PUT", token)
    assert (scene.file.parent / "new" / "c.txt").read_bytes() == b"new"
    transfer_token = app.get_authorizer("transfer.api.globus.org").access_token
    for wrong in ("", transfer_token):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            https(scene, "/data/a.bin", token=wrong)

"""Drivers are killed or stop during transfers: the next one follows the same transfers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.transfer_fixtures import TransferFacility
from patience import wait_until
from staging_scene import MIB, WAIT_S, Scene, in_thread
from transfer_driver import make_artifact, place

from apps.base.errors import CrossfedError, UserMistake
from workflows.globus.transfer.calls import Backoff
from workflows.globus.transfer.errors import LoginMissing, TransferDetached


@pytest.fixture
def scene(transfer_facility: TransferFacility, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(transfer_facility, tmp_path)
    yield made
    made.close()


def driver(scene: Scene) -> subprocess.Popen[bytes]:
    """Another driver in a process of its own, which sends the model to polaris."""
    known = scene.facility.account
    service = f"{scene.facility.service.url}/"
    names = {"GLOBUS_COMPUTE_CLIENT_ID": known.client_id, "GLOBUS_COMPUTE_CLIENT_SECRET": known.secret}
    names |= {f"GLOBUS_SDK_SERVICE_URL_{name}": service for name in ("AUTH", "TRANSFER")}
    root = Path(__file__).resolve().parents[4]
    names |= {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    ends = (scene.run.path, scene.here.id, scene.here.folder, scene.there.id, scene.there.folder)
    arguments = [*map(str, ends), str(scene.run.at("polaris").parent), json.dumps(scene.model["artifact"])]
    command = [sys.executable, str(root / "tests" / "transfer_driver.py"), *arguments]
    return subprocess.Popen(command, env={**os.environ, **names})


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], Any]) -> None:
    try:
        wait_until(condition)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_login_that_is_lost_during_a_transfer_leaves_the_transfer_to_the_next_driver(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    scene.there.expired = True  # holds the transfer up
    sending = in_thread(lambda: scene.send(scene.staging()))
    wait_until(lambda: scene.has_record("transfer_submitted"))
    account = scene.facility.auth.change_secret(scene.facility.account)
    scene.facility.auth.expire_tokens()
    assert isinstance(sending.exception(WAIT_S), UserMistake | LoginMissing)
    assert scene.states() == []
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", account.secret)
    scene.there.expired = False
    assert scene.send(scene.staging())["nbytes_moved"] == MIB
    assert len(scene.transfer.tasks) == 1


def test_a_driver_killed_while_globus_copies_is_followed_by_the_next(scene: Scene):
    scene.there.expired = True  # holds the transfer up
    kill_when(driver(scene), lambda: scene.has_record("transfer_submitted"))
    [task] = scene.transfer.tasks
    scene.there.expired = False
    sent = scene.send(scene.staging())
    assert scene.transfer.tasks == [task]
    [submitting] = scene.run.records("transfer_submitting")
    assert (sent["started"], sent["nbytes_moved"]) == (submitting["time"], MIB)


@pytest.mark.parametrize("reaches", [True, False], ids=["the request is on its way", "the request is lost"])
def test_a_driver_killed_between_id_and_task_submits_under_the_same_id(scene: Scene, reaches: bool):
    wrong = {"after": True} if reaches else {"status": 503}
    scene.facility.service.fault("/transfer$", method="POST", delay_s=10, **wrong)
    submitted = (lambda: scene.transfer.tasks) if reaches else (lambda: scene.has_record("transfer_submitting"))
    kill_when(driver(scene), submitted)
    assert not scene.has_record("transfer_submitted")
    scene.facility.service.clear()
    assert scene.send(scene.staging())["nbytes_moved"] == MIB
    [task] = scene.transfer.tasks
    [submitting] = scene.run.records("transfer_submitting")
    assert task.document["submission_id"] == submitting["submission_id"]


def test_a_task_unknown_to_the_service_is_repeated(scene: Scene):
    staging = scene.staging(Backoff(0.03, 0.1, stall_s=600))
    scene.transfer.fault("stall")
    sending = in_thread(lambda: scene.send(staging))
    wait_until(lambda: scene.has_record("transfer_submitted"))
    staging.close()
    assert isinstance(sending.exception(WAIT_S), TransferDetached)
    scene.transfer.release()
    wait_until(lambda: scene.transfer.tasks[0].status == "SUCCEEDED")
    scene.transfer.tasks.clear()
    assert scene.send(scene.staging())["nbytes_moved"] == MIB
    assert len(scene.transfer.tasks) == 1


def test_waiting_threads_are_released_when_the_driver_stops(scene: Scene):
    scene.transfer.fault("stall")
    staging = scene.staging(Backoff(300, 300, stall_s=600))
    models = [{"artifact": make_artifact(scene.run.store, os.urandom(100))} for _ in range(5)]
    with scene.threads(5) as threads:
        store = str(scene.run.store), str(scene.run.at("polaris"))
        sending = [threads.submit(staging.send, place(), model, *store, 1) for model in models]
        wait_until(lambda: len(scene.transfer.tasks) == 3)
        staging.close()
        errors = [future.exception(WAIT_S) for future in sending]
    assert all(isinstance(error, CrossfedError) and "A resume follows the transfer" in str(error) for error in errors)
    assert scene.states() == [], "nothing has ended"
    scene.transfer.release()


def test_threads_waiting_for_an_absent_service_are_released_too(scene: Scene):
    scene.facility.service.fault("submission_id", status=503, count=-1, headers={"Retry-After": "600"})
    staging = scene.staging()
    sending = in_thread(lambda: scene.send(staging))
    wait_until(lambda: scene.has_record("transfer_unreachable"))
    staging.close()
    assert isinstance(sending.exception(WAIT_S), TransferDetached)

"""Failures of a transfer are repaired, waited for, or reported with a remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.transfer_fixtures import TransferFacility
from patience import wait_until
from staging_scene import MIB, WAIT_S, Scene, in_thread
from transfer_driver import QUICK

from apps.artifacts.store import verify
from apps.base.errors import ArtifactError, UpdateRefused
from workflows.globus.transfer.calls import Backoff
from workflows.globus.transfer.errors import ConsentMissing, LoginMissing, TransferCanceled, TransferFailed


@pytest.fixture
def scene(transfer_facility: TransferFacility, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(transfer_facility, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["fail", "partial"])
def test_a_failed_transfer_is_repeated(scene: Scene, fault: str):
    scene.transfer.fault(fault)
    scene.send(scene.staging())
    assert verify(scene.run.at("polaris"), scene.model["artifact"])
    assert scene.states() == ["TransferFailed", "SUCCEEDED"]
    names = [record["submission_id"] for record in scene.run.records("transfer_submitting")]
    assert len(set(names)) == 2, "under a name of its own"


def test_a_transfer_that_fails_too_often_says_why_and_where(scene: Scene):
    scene.transfer.fault("partial", count=3)
    with pytest.raises(TransferFailed, match=r"site polaris, round 1: Globus transfer .* ENDPOINT_ERROR: ended in the"):
        scene.send(scene.staging(retries=2))
    assert scene.states() == ["TransferFailed"] * 3
    scene.send(scene.staging())
    assert verify(scene.run.at("polaris"), scene.model["artifact"])


@pytest.mark.parametrize("fault", ["corrupt", "drop"])
def test_globus_repairs_faults_automatically(scene: Scene, fault: str):
    scene.transfer.fault(fault)
    scene.send(scene.staging())
    assert verify(scene.run.at("polaris"), scene.model["artifact"])
    [ended] = scene.run.records("transfer_ended")
    assert (ended["state"], ended["faults"]) == ("SUCCEEDED", 1)


def test_an_update_that_arrives_wrong_is_an_artifact_error_and_comes_with_the_next_attempt(scene: Scene):
    said = scene.manifest()
    scene.transfer.fault("damage")
    staging = scene.staging()
    with pytest.raises(ArtifactError, match="site polaris, round 1: artifact's content does not match"):
        scene.fetch(staging, said)
    assert scene.fetch(staging, said, attempt=2)["nbytes_moved"] == 600_000
    assert verify(scene.run.store, said["artifact"])
    assert scene.states() == ["ArtifactError", "SUCCEEDED"]


def test_an_update_that_the_site_has_lost_is_an_artifact_error(scene: Scene):
    said = scene.manifest()
    (scene.run.leaving("polaris") / f"{said['artifact']['sha256']}.safetensors").unlink()
    with pytest.raises(ArtifactError, match="site polaris, round 1: the update is not at the site any more"):
        scene.fetch(scene.staging(), said)


def test_a_model_that_is_damaged_here_is_deleted_before_anything_is_sent(scene: Scene):
    path = scene.run.store / f"{scene.model['artifact']['sha256']}.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="site polaris, round 1: artifact has 4 bytes"):
        scene.send(scene.staging())
    assert list(path.parent.iterdir()) == []
    assert scene.transfer.tasks == []


def test_a_stalled_transfer_is_cancelled_and_repeated(scene: Scene):
    scene.transfer.fault("stall")
    sending = in_thread(lambda: scene.send(scene.staging(retries=50)))
    wait_until(lambda: len(scene.transfer.tasks) >= 2)
    scene.transfer.release()
    assert sending.result(WAIT_S)["nbytes_moved"] == MIB
    assert scene.transfer.tasks[0].fatal_error == {"code": "CANCELED", "description": "canceled on request"}
    assert "has moved nothing for" in scene.run.records("transfer_ended")[0]["reason"]
    assert "TIMEOUT: no answer from the data channel" in scene.run.records("transfer_trouble")[0]["reason"]


def test_a_collection_that_is_offline_is_waited_for(scene: Scene):
    scene.there.online = False
    sending = in_thread(lambda: scene.send(scene.staging(Backoff(0.03, 0.1, stall_s=600))))
    wait_until(lambda: scene.has_record("transfer_trouble"))
    scene.there.online = True
    assert sending.result(WAIT_S)["nbytes_moved"] == MIB
    [trouble] = scene.run.records("transfer_trouble")
    assert trouble["reason"] == "CONNECTION_FAILED: collection facility cannot be reached"
    assert len(scene.transfer.tasks) == 1


def test_expired_credentials_are_reported_with_the_remedy_and_waited_for(scene: Scene):
    scene.there.expired = True
    staging = scene.staging()
    sending = in_thread(lambda: scene.send(staging))
    wait_until(lambda: (staging.progress("polaris") or {}).get("trouble"))
    [task] = scene.transfer.tasks
    assert task.status == "INACTIVE"
    time.sleep(QUICK.stall_s * 1.2)  # patience for what stands still does not end this wait
    scene.there.expired = False
    scene.transfer.runner.notify()
    assert sending.result(WAIT_S)["nbytes_moved"] == MIB
    assert scene.transfer.tasks == [task]
    [trouble] = scene.run.records("transfer_trouble")
    page = f"https://app.globus.org/activity/{task.id}"
    assert f"Renew the collection's credentials at {page}" in trouble["reason"]


def test_the_deadline_ends_it(scene: Scene):
    scene.there.expired = True
    with pytest.raises(TransferFailed, match="EXPIRED: the deadline has passed"):
        scene.send(scene.staging(retries=0, deadline_s=0.3))


def test_a_cancelled_transfer_is_not_repeated(scene: Scene):
    scene.transfer.fault("stall")
    staging = scene.staging(Backoff(0.03, 0.1, stall_s=600))
    sending = in_thread(lambda: scene.send(staging))
    wait_until(lambda: scene.transfer.tasks and scene.transfer.tasks[0].faults)
    scene.facility.client().cancel_task(scene.transfer.tasks[0].id)
    with pytest.raises(TransferCanceled, match="CANCELED: canceled on request.*Resume to start it again"):
        sending.result(WAIT_S)
    scene.transfer.release()
    assert scene.send(scene.staging())["nbytes_moved"] == MIB


@pytest.mark.parametrize(
    ("path", "method"),
    [("submission_id", ""), ("/transfer$", "POST"), ("/task_list", "GET"), ("/task/", "GET")],
    ids=["id", "submit", "look", "end"],
)
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_service_that_does_not_answer_is_asked_again(scene: Scene, path: str, method: str, status: int):
    scene.facility.service.fault(path, method=method, status=status, count=4)
    assert scene.send(scene.staging())["nbytes_moved"] == MIB
    assert len(scene.transfer.tasks) == 1
    events = [record["event"] for record in scene.run.records("transfer_unreachable", "transfer_back")]
    assert events == ["transfer_unreachable", "transfer_back"]


def test_an_answer_that_got_lost_does_not_send_twice(scene: Scene):
    scene.facility.service.fault("/transfer$", method="POST", drop=True, after=True, count=3)
    assert scene.send(scene.staging())["nbytes_moved"] == MIB
    assert len(scene.transfer.tasks) == 1


def test_a_service_that_is_away_for_a_while(scene: Scene):
    staging = scene.staging()
    scene.send(staging)
    scene.facility.service.stop()
    sending = in_thread(lambda: scene.send(staging, attempt=2))
    wait_until(lambda: scene.has_record("transfer_unreachable"))
    scene.facility.service.start()
    assert sending.result(WAIT_S)["nbytes_moved"] == MIB


def test_tokens_that_run_out_are_renewed(scene: Scene):
    scene.there.bandwidth = 2 * MIB
    sending = in_thread(lambda: scene.send(scene.staging()))
    wait_until(lambda: scene.transfer.tasks)
    scene.facility.auth.expire_tokens()
    assert sending.result(WAIT_S)["nbytes_moved"] == MIB
    assert len(scene.transfer.tasks) == 1


def test_an_invalid_login_is_reported_at_once(scene: Scene):
    app = scene.facility.app(secret="of yesterday")
    with pytest.raises(LoginMissing, match=r"site polaris, round 1: Globus does not accept the login\. Set GLOBUS_C"):
        scene.send(scene.staging(make_client=lambda ids: scene.facility.client(app)))


def test_a_consent_that_is_missing_comes_with_the_command(scene: Scene):
    scene.there.data_access = True
    with pytest.raises(ConsentMissing) as caught:
        scene.send(scene.staging(make_client=lambda ids: scene.facility.client()))
    assert str(caught.value).endswith(f"Agree once: python workflows/login.py --collection {scene.there.id}")
    assert len(scene.run.records("transfer_submitting")) == 1, "what was refused is not tried again"
    assert scene.send(scene.staging())["nbytes_moved"] == MIB, "once it is given, a resume continues"


def test_an_identity_without_access_is_reported_at_once(scene: Scene):
    scene.there.allowed = set()
    with pytest.raises(TransferFailed, match=r"not on the access list .*Ask the collection's owner"):
        scene.send(scene.staging())


def test_a_folder_that_the_collection_does_not_show_is_reported(scene: Scene):
    scene.here.folder = scene.here.folder / "runs"
    with pytest.raises(TransferFailed, match=r"does not show /runs/demo/artifacts/.*Set 'globus.folder'"):
        scene.send(scene.staging())


@pytest.mark.parametrize("bad", [{"task_id": "../x"}, {"artifact": {"sha256": "../../etc/passwd", "nbytes": 1}}])
def test_a_site_cannot_name_our_files(scene: Scene, bad: dict[str, Any]):
    with pytest.raises(UpdateRefused, match="site polaris, round 1: update refused: .* is no "):
        scene.fetch(scene.staging(), scene.manifest() | bad)
    assert scene.transfer.tasks == []


def test_a_file_larger_than_announced_is_not_fetched(scene: Scene):
    said = scene.manifest(b"x" * 1000)
    [update] = scene.run.leaving("polaris").glob("*.safetensors")
    update.write_bytes(bytes(64 * MIB))
    with pytest.raises(ArtifactError, match=r"site polaris, round 1: it has 67,108,864 bytes instead of 1,000"):
        scene.fetch(scene.staging(), said)
    assert scene.transfer.tasks == []
    assert not (scene.run.store / update.name).exists()


def test_a_file_that_grows_after_it_was_asked_for_is_cancelled_and_removed(scene: Scene, monkeypatch):
    said = scene.manifest(b"x" * 1000)
    [update] = scene.run.leaving("polaris").glob("*.safetensors")
    update.write_bytes(bytes(64 * MIB))
    scene.there.bandwidth = 20 * MIB
    monkeypatch.setattr("workflows.globus.transfer.staging.require_size", lambda *_: None)  # grown since
    with pytest.raises(ArtifactError, match=r"site polaris, round 1: Globus transfer .* has moved .* were announced"):
        scene.fetch(scene.staging(), said)
    assert scene.transfer.tasks[0].bytes_transferred < 32 * MIB
    assert scene.states() == ["ArtifactError"]
    assert not (scene.run.store / update.name).exists()

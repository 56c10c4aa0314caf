"""Models reach sites and updates come back through the genuine TransferClient, each once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.transfer_fixtures import TransferFacility
from patience import wait_until
from staging_scene import MIB, WAIT_S, Scene, in_thread
from transfer_driver import TASK_ID, make_artifact, place

from apps.artifacts.store import verify
from apps.base.errors import ArtifactError, UpdateRefused
from site_configs.library.errors import SiteConfigError
from workflows.globus.transfer.errors import TransferFailed
from workflows.globus.transfer.task import TransferRequest, follow, new_submission_id, submit


@pytest.fixture
def scene(transfer_facility: TransferFacility, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(transfer_facility, tmp_path)
    yield made
    made.close()


def test_a_model_is_sent_and_recorded_in_the_journal(scene: Scene):
    sent = scene.send(scene.staging(name="demo run!"))
    assert verify(scene.run.at("polaris"), scene.model["artifact"])
    assert sent["artifact"] == scene.model["artifact"]
    assert (sent["frozen"], sent["store"], sent["nbytes_moved"]) == ("abc", str(scene.run.at("polaris")), MIB)
    assert sent["started"] <= sent["ended"]
    submitting, submitted, ended = scene.run.records()
    assert [r["event"] for r in (submitting, submitted, ended)] == [
        "transfer_submitting",
        "transfer_submitted",
        "transfer_ended",
    ]
    [task] = scene.transfer.tasks
    assert submitting["submission_id"] == submitted["submission_id"] == task.document["submission_id"]
    assert submitted["task_id"] == ended["task_id"] == task.id
    assert (submitting["site"], submitting["round"], submitting["direction"]) == ("polaris", 1, "send")
    assert (submitting["files"], submitting["nbytes"]) == (1, MIB)
    assert (ended["state"], ended["nbytes"], ended["faults"]) == ("SUCCEEDED", MIB, 0)


def test_the_request_to_globus(scene: Scene):
    scene.send(scene.staging(name="demo run!", deadline_s=3600))
    [task] = scene.transfer.tasks
    assert task.document["verify_checksum"] and task.document["fail_on_quota_errors"]
    assert not any(task.document[f"notify_on_{end}"] for end in ("succeeded", "failed", "inactive"))
    assert task.label == "crossfed demo run_ send polaris round 1"
    assert task.deadline == pytest.approx(time.time() + 3600, abs=60)


def test_an_update_comes_back_in_a_transfer_of_one_file(scene: Scene):
    said = scene.manifest()
    fetched = scene.fetch(scene.staging(), said)
    assert verify(scene.run.store, said["artifact"])
    assert fetched["manifest"] == said
    assert (fetched["store"], fetched["nbytes_moved"]) == (str(scene.run.store), 600_000)
    assert fetched["started"] > 9.0, "of the move, not of the training"
    [task] = scene.transfer.tasks
    assert task.files == 1


def test_the_site_is_told_what_the_server_has(scene: Scene):
    """The collection lets the server only read there: the site deletes its updates itself."""
    said, staging = [scene.manifest(bytes([n]) * 1000) for n in range(6)], scene.staging()
    for number, one in enumerate(said):
        scene.fetch(staging, one, attempt=number)
    wanted = [one["artifact"]["sha256"] for one in said[-4:]]
    model = {"artifact": make_artifact(scene.run.store, b"next")}
    store = str(scene.run.store), str(scene.run.at("polaris"))
    assert staging.send(place(), model, *store, 1)["fetched"] == wanted
    staging = scene.staging()
    assert staging.send(place(), model, *store, 1)["fetched"] == wanted, "another driver tells the same"
    other = {"artifact": make_artifact(scene.run.store, b"other")}
    sent = staging.send(place("aurora"), other, str(scene.run.store), str(scene.run.at("aurora")), 1)
    assert sent["fetched"] == []


def test_what_is_larger_than_the_model_is_not_fetched(scene: Scene):
    large = scene.manifest(os.urandom(4 * MIB))
    with pytest.raises(UpdateRefused, match="site polaris, round 1: update refused: it has 4194304 bytes"):
        scene.fetch(scene.staging(), large)
    assert scene.transfer.tasks == []


def test_what_is_private_to_the_site_is_out_of_reach(scene: Scene):
    """The driver's own client asks for a site's records, by their path and through a link in the incoming folder."""
    private = scene.run.sites["polaris"].storage_root
    (private / "shard").mkdir(parents=True)
    (private / "shard" / "records.jsonl").write_text("secret")
    (scene.there.folder / "in").mkdir()
    (scene.there.folder / "in" / "link").symlink_to(private)
    staging, here = scene.staging(), scene.run.server.path_of(scene.run.path / "stolen")
    with pytest.raises(SiteConfigError, match="is not below"):
        scene.run.sites["polaris"].collection.path_of(private)
    for path in ("/in/link/shard/records.jsonl", "/../private/polaris/shard/records.jsonl", "/"):
        request = TransferRequest(scene.there.id, scene.here.id, ((path, here),), "x", 5.0)
        with pytest.raises(TransferFailed):
            follow(staging.caller, submit(staging.caller, request, new_submission_id(staging.caller)), lambda *_: None)
    assert not (scene.run.path / "stolen").exists()


def test_what_is_here_already_is_not_fetched(scene: Scene):
    said = scene.manifest(b"same")
    make_artifact(scene.run.store, b"same")
    assert scene.fetch(scene.staging(), said)["nbytes_moved"] == 0
    assert scene.transfer.tasks == []


def test_part_of_an_update_that_lies_here_is_replaced(scene: Scene):
    said = scene.manifest()
    path = scene.run.store / f"{said['artifact']['sha256']}.safetensors"
    path.write_bytes(b"update" * 10)
    assert scene.fetch(scene.staging(), said)["nbytes_moved"] == 600_000
    assert verify(scene.run.store, said["artifact"])


def test_a_manifest_that_is_gone_does_not_stop_the_update(scene: Scene):
    said = scene.manifest()
    (scene.run.leaving("polaris") / f"{TASK_ID}.json").unlink()
    assert scene.fetch(scene.staging(), said)["nbytes_moved"] == 600_000


def test_what_was_sent_is_not_sent_again_but_by_a_second_attempt(scene: Scene):
    staging = scene.staging()
    first = scene.send(staging)
    assert scene.send(staging) == first
    assert scene.send(scene.staging()) == first, "nor by another driver, which answers the same"
    assert len(scene.transfer.tasks) == 1
    scene.send(staging := scene.staging(), attempt=2)
    scene.send(staging, attempt=2)
    assert len(scene.transfer.tasks) == 2


def test_two_sites_with_one_store_are_served_by_one_transfer(scene: Scene):
    scene.there.bandwidth = 4 * MIB
    staging, store = scene.staging(), str(scene.run.at("polaris"))
    with scene.threads(2) as threads:
        one = threads.submit(scene.send, staging, "polaris", 1, store)
        two = threads.submit(scene.send, staging, "aurora", 1, store)
        results = [one.result(WAIT_S), two.result(WAIT_S)]
    assert len(scene.transfer.tasks) == 1
    assert sorted(result["nbytes_moved"] for result in results) == [0, MIB]
    assert {result["store"] for result in results} == {store}
    again = [scene.send(staging, site, 1, store) for site in ("polaris", "aurora")]
    assert again == results


def test_two_sites_that_wait_for_one_transfer_get_each_its_own_error(scene: Scene):
    scene.transfer.fault("stall")
    staging, store = scene.staging(retries=0), str(scene.run.at("polaris"))
    with scene.threads(2) as threads:
        waiting = {site: threads.submit(scene.send, staging, site, 1, store) for site in ("polaris", "aurora")}
        said = {site: str(future.exception(WAIT_S)) for site, future in waiting.items()}
    assert all(f"site {site}, round 1: Globus transfer" in text for site, text in said.items()), said


def test_at_most_three_are_in_flight(scene: Scene):
    scene.there.expired = True  # holds the transfers up
    staging = scene.staging()
    models = [{"artifact": make_artifact(scene.run.store, os.urandom(1000))} for _ in range(6)]
    with scene.threads(6) as threads:
        store = str(scene.run.store), str(scene.run.at("polaris"))
        sending = [threads.submit(staging.send, place(), model, *store, 1) for model in models]
        wait_until(lambda: len(scene.transfer.tasks) == 3)
        time.sleep(0.3)
        assert len(scene.transfer.tasks) == 3
        scene.there.expired = False
        assert [future.result(WAIT_S)["nbytes_moved"] for future in sending] == [1000] * 6
    assert len(scene.transfer.tasks) == 6


def test_progress_of_a_site(scene: Scene):
    scene.there.bandwidth = 2 * MIB
    staging = scene.staging()
    assert staging.progress("polaris") is None
    sending = in_thread(lambda: scene.send(staging))
    seen: list[Any] = []
    wait_until(lambda: seen.append(staging.progress("polaris")) or (seen[-1] or {}).get("bytes_transferred"))
    shown = seen[-1]
    assert (shown["direction"], shown["nbytes"], shown["nice_status"], shown["trouble"]) == ("send", MIB, "OK", None)
    assert 0 < shown["bytes_transferred"] <= MIB and shown["rate"] > 0
    assert staging.progress("aurora") is None
    sending.result(WAIT_S)
    assert staging.progress("polaris") is None


def test_cleaning_a_site_deletes_there_and_is_remembered(scene: Scene):
    staging = scene.staging()
    scene.send(staging)
    kept = make_artifact(scene.run.at("polaris"), b"kept")
    sha = scene.model["artifact"]["sha256"]
    with pytest.raises(ArtifactError, match="'../escape' is no name of an artifact"):
        staging.clean(place(), [sha, "../escape"])
    task_id = staging.clean(place(), [sha, "f" * 64])["task_id"]
    assert task_id == scene.transfer.tasks[-1].id
    wait_until(lambda: scene.transfer.tasks[-1].status == "SUCCEEDED")
    assert [path.name for path in scene.run.at("polaris").iterdir()] == [f"{kept['sha256']}.safetensors"]
    scene.send(scene.staging())
    assert verify(scene.run.at("polaris"), scene.model["artifact"]), "what is needed again is sent again"
    assert scene.staging().clean(place(), [])["task_id"] is None


def test_no_secret_is_written_down(scene: Scene, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    caplog.set_level("INFO", logger="globus_sdk")
    scene.facility.service.fault("/task/", status=503, count=3)
    scene.transfer.fault("fail")
    scene.send(scene.staging())
    known = [*scene.facility.tokens(), scene.facility.account.secret]
    written = (scene.run.path / "journal.jsonl").read_text() + caplog.text
    assert len(known) > 1 and len(scene.states()) == 2
    assert not [secret for secret in known if secret in written]


def test_both_are_apps_of_parsl(scene: Scene, tmp_path: Path):
    import parsl
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor as Threads

    staging, said = scene.staging(), scene.manifest()
    with parsl.load(Config(executors=[Threads(label="transfers", max_threads=3)], run_dir=str(tmp_path / "parsl"))):
        send, fetch = (
            parsl.python_app(app, executors=["transfers"], cache=True) for app in (staging.send, staging.fetch)
        )
        store = str(scene.run.store)
        sent = send(place(), scene.model, store, str(scene.run.at("polaris")), 1)
        fetched = fetch(place(), said, scene.model, store, 1)
        assert (sent.result()["nbytes_moved"], fetched.result()["nbytes_moved"]) == (MIB, 600_000)
    parsl.clear()


def test_threads_share_one_client(scene: Scene):
    made: list[int] = []

    def make_client(ids: Any) -> Any:
        made.append(threading.get_ident())
        assert list(ids) == [scene.here.id, scene.there.id]
        return scene.facility.client()

    staging = scene.staging(make_client=make_client)
    with scene.threads(2) as threads:
        list(threads.map(lambda site: scene.send(staging, site), ("polaris", "aurora")))
    assert len(made) == 1

"""Small files come by HTTPS where a collection has a server, and never more of them than was asked for."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
from facilities.globus.transfer_fixtures import TransferFacility

from site_configs.library.site import Collection
from workflows.globus.identity import globus_app, https_authorizer, transfer_client
from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import ConsentMissing, TransferFailed
from workflows.globus.transfer.https import FileReader

TEXT = b'{"step": 7, "steps": 10}'


class Scene:
    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility = facility
        self.shown = facility.transfer.add_collection(root / "site", "site", https=True)
        self.path = self.shown.folder / "a site" / "progress #1.json"
        self.path.parent.mkdir()
        self.path.write_bytes(TEXT)
        self.collection = Collection(self.shown.id, self.shown.folder)
        app = globus_app()
        caller = RetryingClient(lambda: transfer_client(app), Backoff(), threading.Event(), lambda trouble: None)
        self.reader = FileReader(caller, partial(https_authorizer, app))


@pytest.fixture
def scene(transfer_facility: TransferFacility, tmp_path: Path) -> Scene:
    return Scene(transfer_facility, tmp_path)


def test_a_file_is_read_and_the_server_asked_for_once(scene: Scene):
    assert [scene.reader.read(scene.collection, scene.path) for _ in range(3)] == [TEXT] * 3
    assert scene.facility.service.wait_for_calls("/https/", 3)
    assert scene.facility.service.count_calls("/endpoint/") == 1
    assert scene.facility.transfer.tasks == []


@pytest.mark.parametrize(("start", "limit"), [(0, 5), (3, 4), (0, 24), (23, 100), (24, 5), (1000, 5)])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_part_of_it(scene: Scene, start: int, limit: int, knows_ranges: bool):
    if not knows_ranges:
        scene.facility.service.fault("/https/", status=200, body=TEXT)
    assert scene.reader.read(scene.collection, scene.path, start, limit) == TEXT[start : start + limit]


def test_what_is_too_long_is_cut_off(scene: Scene):
    scene.path.write_bytes(b"x" * 3_000_000)
    assert scene.reader.read(scene.collection, scene.path) == b"x" * (1 << 20)


def test_no_file_no_server_no_answer_is_none(scene: Scene):
    assert scene.reader.read(scene.collection, scene.path.with_name("nothing")) is None
    scene.facility.service.fault("/https/", status=500)
    assert scene.reader.read(scene.collection, scene.path) is None
    scene.facility.service.fault("/https/", drop=True)
    assert scene.reader.read(scene.collection, scene.path) is None
    scene.shown.online = False
    assert scene.reader.read(scene.collection, scene.path) is None


def test_a_collection_without_a_server_is_not_asked(scene: Scene):
    scene.shown.https = False
    assert scene.reader.read(scene.collection, scene.path) is None
    assert scene.facility.service.count_calls("/https/") == 0


def test_a_token_that_has_run_out_is_renewed(scene: Scene):
    assert scene.reader.read(scene.collection, scene.path) == TEXT
    scene.facility.auth.expire_tokens()
    assert scene.reader.read(scene.collection, scene.path) == TEXT


@pytest.mark.parametrize("status", [302, 401, 403])
def test_a_missing_consent_is_reported_with_its_command(scene: Scene, status: int):
    scene.facility.service.fault("/https/", status=status, count=-1, headers={"Location": "http://127.0.0.1:9/login"})
    with pytest.raises(ConsentMissing, match=f"login.py --collection {scene.collection.id}"):
        scene.reader.read(scene.collection, scene.path)


def test_an_answer_that_makes_no_sense_is_an_error(scene: Scene):
    scene.facility.service.fault("/https/", status=400)
    with pytest.raises(TransferFailed, match="answers HTTP 400"):
        scene.reader.read(scene.collection, scene.path)

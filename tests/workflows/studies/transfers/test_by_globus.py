"""Transfer studies by Globus Transfer, against its stand-in: real bytes, faults, queues, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import PROJECT, environment, journal, nano
from facilities.globus.collection_folders import CollectionFolder
from facilities.globus.transfer_fixtures import TransferFacility
from patience import patience

from workflows.globus.transfer.task import TransferResult
from workflows.globus.transfer.transfer_log import Transfer
from workflows.studies.transfers import by_globus
from workflows.studies.transfers.by_globus import TransferTimer
from workflows.studies.transfers.carriers import FileTransfer
from workflows.studies.transfers.line import lines_of
from workflows.studies.transfers.rows import SEND, TransferRow, read_rows

SCRIPT = PROJECT / "workflows" / "transfer_study.py"


class World:
    """The service, this machine's collection with the study in it, and sites with a collection each."""

    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility, self.root = facility, root
        self.here = facility.transfer.add_collection(root / "here", "here")
        self.sites: dict[str, CollectionFolder] = {}
        self.out = root / "here" / "out"

    def site(self, name: str, **switches: Any) -> CollectionFolder:
        switches = {"rules": {"in": "rw", "out": "r"}, **switches}
        self.sites[name] = self.facility.transfer.add_collection(self.root / name, name, **switches)
        return self.sites[name]

    def environment(self) -> dict[str, str]:
        url, account = f"{self.facility.service.url}/", self.facility.account
        return environment() | {
            "GLOBUS_SDK_SERVICE_URL_AUTH": url,
            "GLOBUS_SDK_SERVICE_URL_TRANSFER": url,
            "GLOBUS_COMPUTE_CLIENT_ID": account.client_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": account.secret,
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        sites = {
            name: {
                "config": "local",
                "carrier": "globus",
                "collection": collection.id,
                "collection_folder": str(self.root / name),
                "storage_root": str(self.root / "private" / name),
            }
            for name, collection in self.sites.items()
        }
        globus = {"collection": self.here.id, "folder": str(self.root / "here")}
        (self.root / "far.yaml").write_text(yaml.safe_dump(nano(sites=sites, globus=globus)))
        command = [sys.executable, str(SCRIPT), "far.yaml", "--out", str(self.out), *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: object) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=patience(240))
        return process.returncode, out, err

    def rows(self) -> list[TransferRow]:
        return read_rows(self.out / "transfers.csv")

    def labels(self) -> list[str]:
        """Return the transfers and deletions in their order, as ``SITE WHAT``."""
        return [task.label.removeprefix("crossfed transfer study ") for task in self.facility.transfer.tasks]

    def left(self) -> list[Path]:
        """Return the files of a study that still exist anywhere."""
        return [path for path in self.root.rglob("*") if path.is_file() and ".safetensors" in path.name]


@contextmanager
def world_in(root: Path) -> Iterator[World]:
    facility = TransferFacility()
    with facility.service:
        yield World(facility, root)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + patience(120)
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_speeds_are_those_of_the_collections(world):
    world.site("fast", bandwidth=40e6, data_access=True)
    world.site("slow", bandwidth=4e6)
    code, out, err = world.run("--models", "small=50_000,large=4_000_000", "--repeat", 2)
    assert code == 0, err
    assert "slow: 32.4 MB in 4 trips there and back, by Globus Transfer" in out
    rows = world.rows()
    assert len(rows) == 2 * 2 * 2 * 2 and {row.carrier for row in rows} == {"globus"}
    large = {row.site: row.rate_mb_s for row in rows if row.model == "large" and row.direction == SEND}
    assert 2.5 < large["slow"] < 4.6  # busy machines are slower, none is faster than its collection
    assert large["slow"] < large["fast"] < 48
    line = lines_of(rows)["slow", SEND]
    assert 2.5e6 < line.bandwidth < 6e6 and line.latency_s < 1
    assert world.labels()[:3] == ["fast send", "fast return", "fast delete"]
    assert len(world.labels()) == 3 * 8
    assert all(task.status == "SUCCEEDED" for task in world.facility.transfer.tasks)
    carried = [task for task in world.facility.transfer.tasks if "delete" not in task.label]
    assert all(task.document["verify_checksum"] for task in carried)
    assert sum(task.bytes_transferred for task in carried) == sum(row.nbytes for row in rows)
    assert world.left() == []
    again = world.run("--models", "small=50_000,large=4_000_000", "--repeat", 2)
    assert again[0] == 0 and "8 of 8 trips are in" in again[1]
    assert len(world.labels()) == 3 * 8


def test_faults_are_counted_and_secrets_stay_out_of_the_study(world):
    world.site("far")
    world.facility.transfer.fault("drop", count=2, label="far send")
    world.facility.service.fault("/v0.10/task/", status=503, count=2)
    code, out, err = world.run("--models", "small=50_000", "--repeat", 1)
    assert code == 0, err
    assert [row.faults for row in world.rows()] == [2, 0]
    assert "2 faults" in out and "is held up:" in err
    words = [world.facility.account.secret, *world.facility.tokens()]
    content = b"".join(path.read_bytes() for path in world.out.rglob("*") if path.is_file())
    assert not any(word.encode() in content for word in words)


def test_damage_that_globus_does_not_see_makes_no_row(world):
    world.site("bad")
    world.site("good")
    world.facility.transfer.fault("damage", label="bad return")
    code, _, err = world.run("--models", "small=50_000", "--repeat", 2)
    assert code == 1
    assert "bad, small (100 kB), trip 1: artifact's content does not match its SHA-256" in err
    assert "The site is left out from here on" in err and "2 of 4 trips are missing" in err
    assert [(row.site, row.repeat) for row in world.rows()] == [("good", 1)] * 2 + [("good", 2)] * 2
    assert world.left() == []
    assert world.run("--models", "small=50_000", "--repeat", 2)[0] == 0
    assert len(world.rows()) == 8


def test_a_refused_transfer_is_reported_in_a_line(world):
    world.site("closed", allowed=set())
    code, _, err = world.run("--models", "small=50_000", "--repeat", 1)
    assert code == 1
    assert "Globus refuses the transfer: not on the access list" in err and "Traceback" not in err


def test_a_missing_collection_is_reported_in_a_line(world):
    gone = world.site("gone")
    del world.facility.transfer.collections[gone.id]
    code, _, err = world.run("--models", "small=50_000", "--repeat", 1)
    assert code == 1
    assert "No such collection" in err and "Traceback" not in err


@pytest.mark.parametrize("way", ["send", "return"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_was_stopped_leaves_no_transfer_and_no_file(world, number, way):
    world.site("far")
    world.facility.transfer.fault("stall", label=f"far {way}")
    process = world.start("--models", "large=2_000_000", "--repeat", 1)
    wait_until(lambda: any(t.faults and t.label.endswith(way) for t in world.facility.transfer.tasks), process)
    os.kill(process.pid, number)
    process.communicate(timeout=patience(60))
    if number == signal.SIGKILL:
        assert world.facility.transfer.tasks[-1].status == "ACTIVE" and world.left()
    else:
        assert process.returncode == 130 and world.left() == []
    stopped = next(task for task in world.facility.transfer.tasks if task.label.endswith(way))
    process = world.start("--models", "large=2_000_000", "--repeat", 1)
    wait_until(lambda: stopped.status == "FAILED", process)
    assert stopped.fatal_error["code"] == "CANCELED"
    world.facility.transfer.release()
    _, err = process.communicate(timeout=patience(120))
    assert process.returncode == 0, err
    assert world.left() == [] and len(world.rows()) == 2
    ended = {record["submission_id"] for record in journal(world.out, by_globus.ENDED)}
    assert ended == {record["submission_id"] for record in journal(world.out, by_globus.SUBMITTING)}


# --- times ------------------------------------------------------------------------------------------------------

TRANSFER = Transfer("key", "far", 0, "send", "collection", "sha256", 100, 1)


def test_the_wait_in_the_queue_is_measured_apart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(by_globus.time, "monotonic", lambda: now[0])
    shown: list[int] = []
    timer = TransferTimer(TRANSFER, shown.append, lambda _: None)
    for at, status, nice, nbytes in (
        (101.0, "ACTIVE", "Queued", 0),
        (104.0, "ACTIVE", "Queued", 0),
        (105.0, "ACTIVE", "OK", 7),
        (110.0, "ACTIVE", "OK", 70),
        (112.0, "SUCCEEDED", None, 100),
    ):
        now[0] = at
        timer.update({"status": status, "nice_status": nice, "bytes_transferred": nbytes}, None)
    timer.check(TransferResult(100, 3))
    assert timer.result() == FileTransfer(seconds=7.0, queued_s=4.0, faults=3)
    assert shown == [0, 0, 7, 70, 100]


def test_a_transfer_that_is_done_at_the_next_query_took_half_as_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(by_globus.time, "monotonic", lambda: now[0])
    timer = TransferTimer(TRANSFER, lambda _: None, lambda _: None)
    for at, status, nice in ((0.25, "ACTIVE", "Queued"), (0.75, "SUCCEEDED", None)):
        now[0] = at
        timer.update({"status": status, "nice_status": nice}, None)
    assert timer.result().seconds == 0.25

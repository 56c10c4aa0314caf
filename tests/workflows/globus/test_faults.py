"""Endpoints, brokers, services and transfers that fail, and drivers that die: the campaign ends with the same model.

After each fault the final model is that of an undisturbed run, nothing finished has been done twice, and no secret lies
in any file.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from batch_sites import events, finish, nothing_left, wait_for
from campaigns import final_hash, run
from globus_campaigns import GlobusWorld, files_with, globus_world
from patience import patience

from apps.training.progress import read_progress

if TYPE_CHECKING:
    from facilities.globus.stack import Stack

pytestmark = [pytest.mark.globus, pytest.mark.campaign]
TRAINING = {"steps": 400, "batch_size": 4, "learning_rate": 0.003, "checkpoint_s": 0.5}
SILENCE_S = 8


@pytest.fixture(scope="module")
def shared_world(globus: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusWorld]:
    """A site ``aurora`` whose agent serves all tests here, each with a storage of its own."""
    with globus_world(globus, tmp_path_factory.mktemp("globus")) as made:
        made.entry = made.site("aurora")
        yield made


class Case:
    """A campaign with a site behind Globus that something happens to."""

    def __init__(self, world: GlobusWorld, name: str, **settings: Any) -> None:
        self.world, self.folder = world, world.root / "driver" / name
        self.run_dir = self.folder / "runs" / "nano"
        self.storage = world.root / "aurora" / name
        self.folder.mkdir()
        entry = {**world.entry, "storage_root": str(self.storage), **settings}
        self.campaign = write(self.folder, world.campaign({"aurora": entry, "here": {"config": "local"}}))
        self.driver: Popen[str] | None = None

    def start(self, *arguments: object) -> Popen[str]:
        self.driver = self.world.start(*(arguments or (self.campaign,)), folder=self.folder)
        return self.driver

    def wait(self, what: str, happened: Callable[[], Any]) -> Any:
        assert self.driver is not None
        return wait_for(what, happened, self.driver)

    def in_training(self, number: int = 1) -> None:
        """Wait until the site is in the middle of a round."""
        self.wait(f"round {number} was under way", lambda: self._step(number) > 20)

    def _step(self, number: int) -> int:
        progress = read_progress(self.storage)
        return progress["step"] if progress and progress["round"] == number and progress["phase"] == "training" else 0

    def ended(self, expected: str) -> str:
        """Wait for a successful end and return the driver's output."""
        assert self.driver is not None
        output = finish(self.driver)
        assert final_hash(self.run_dir) == expected
        done = [r for r in events(self.run_dir, "task_done") if r["app"] == "local_train"]
        trained = [(r["site"], r["round"]) for r in done if not r["result"]["reused"]]
        assert len(trained) == len(set(trained)) <= 4  # others are answers from the manifest of one of these
        assert nothing_left(self.run_dir)
        assert files_with(self.world.secrets(), self.folder, self.storage) == []
        return output

    def asked(self) -> list[str]:
        """The Compute tasks of the site's trainings."""
        trainings = [r["key"] for r in events(self.run_dir, "compute_submitting") if "local_train" in r["function"]]
        return [r["task_id"] for r in events(self.run_dir, "compute_submitted") if r["key"] in trainings]

    def manifests(self) -> list[dict[str, Any]]:
        done = events(self.run_dir, "task_done")
        return [r["result"] for r in done if r["app"] == "local_train" and r["site"] == "aurora"]


def write(folder: Path, campaign: dict[str, Any]) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({**campaign, "rounds": 2, "training": TRAINING}))
    return path


@pytest.fixture
def case(shared_world: GlobusWorld, request: pytest.FixtureRequest) -> Iterator[Case]:
    shared_world.stack.reset()
    settings = getattr(request, "param", {})
    made = Case(shared_world, request.node.name.removeprefix("test_")[:30].rstrip("[]_"), **settings)
    yield made
    if made.driver and made.driver.poll() is None:
        made.driver.kill()
        made.driver.communicate()


@pytest.fixture(scope="module")
def undisturbed(shared_world: GlobusWorld) -> str:
    """The final model without any fault, and without Globus."""
    folder = shared_world.root / "undisturbed"
    folder.mkdir()
    sites = {"aurora": {"config": "local"}, "here": {"config": "local"}}
    ended = run(folder, write(folder, shared_world.campaign(sites)))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return final_hash(folder / "runs" / "nano")


def kill(driver: Popen[str]) -> None:
    """End a driver as a power cut would."""
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()


def test_a_driver_dead_for_long_finds_what_the_site_has_done(case: Case, undisturbed: str) -> None:
    """The site's task continues without a driver, and is submitted once."""
    driver = case.start()
    case.in_training()
    kill(driver)
    until = time.monotonic() + patience(60)
    while not list((case.storage / "manifests").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.2)
    case.start("--resume", case.run_dir)
    case.ended(undisturbed)
    assert len(case.asked()) == 2  # one a round, over both drivers
    assert [manifest["attempts"] for manifest in case.manifests()] == [1, 1]


def test_a_driver_killed_at_any_instant(case: Case, undisturbed: str) -> None:
    """Within the start, the transfers, the trainings and the returns, as it comes."""
    for wait_s in (4.1, 7.3, 5.2):
        driver = case.start(*(("--resume", case.run_dir) if case.run_dir.exists() else ()))
        time.sleep(wait_s)
        if driver.poll() is not None:
            break
        kill(driver)
    case.start("--resume", case.run_dir)
    case.ended(undisturbed)
    sent = {r["submission_id"] for r in events(case.run_dir, "transfer_submitting")}
    assert len(sent) == 4  # each model and update crossed once


@pytest.mark.parametrize("case", [{"silence": SILENCE_S}], indirect=True, ids=["impatient"])
def test_an_endpoint_killed_with_a_task_in_it(case: Case, shared_world: GlobusWorld, undisturbed: str) -> None:
    """Globus Compute never reports that the task is lost; the missing liveness shows it."""
    case.start()
    case.in_training()
    agent = shared_world.agents["aurora"]
    for endpoint_id in agent.children():
        agent.kill_child(endpoint_id)
    case.ended(undisturbed)
    assert [manifest["attempts"] for manifest in case.manifests()] == [1, 1]


def test_a_worker_killed_in_mid_training(case: Case, undisturbed: str) -> None:
    case.start()
    case.in_training()
    (claim,) = (case.storage / "claims").glob("*.json")
    worker = psutil.Process(json.loads(claim.read_text())["pid"]).parent()
    assert worker is not None
    worker.kill()  # an endpoint that was killed before may have left others, which have nothing to do
    case.ended(undisturbed)
    assert case.manifests()[0]["attempts"] == 2


def test_a_broker_that_is_gone_for_half_a_minute(case: Case, shared_world: GlobusWorld, undisturbed: str) -> None:
    case.start()
    case.in_training()
    shared_world.stack.broker.stop()
    time.sleep(30)
    shared_world.stack.broker.start()
    case.ended(undisturbed)
    assert [manifest["attempts"] for manifest in case.manifests()] == [1, 1]


def test_a_bad_day_of_all_services(
    case: Case, shared_world: GlobusWorld, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storms of errors, tokens that expire, submissions that arrive twice, and a transfer of every bad kind."""
    stack, transfer = shared_world.stack, shared_world.transfer
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "10")
    stack.compute.slow_submissions(15, count=1)
    transfer.fault("corrupt", label="send")
    transfer.fault("fail", label="send")
    transfer.fault("damage", label="fetch")
    transfer.fault("partial", label="fetch")
    transfer.fault("drop", label="fetch")
    case.start()
    case.wait("the sites had enrolled", lambda: len(events(case.run_dir, "task_done")) > 2)
    stack.compute.storm(503, count=2)
    stack.compute.storm(429, count=1)
    stack.service.fault(r"/v0.10/", status=503, count=4)
    stack.auth.expire_tokens()
    case.in_training()
    stack.auth.expire_tokens()
    case.ended(undisturbed)
    assert {manifest["attempts"] for manifest in case.manifests()} == {1}

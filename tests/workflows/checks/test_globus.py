"""Checks of ``--check --live`` at a site behind Globus, with stand-ins of its services."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facilities.globus.auth import COMPUTE_SERVER
from facilities.globus.http import Request, refuse
from facilities.globus.stack import client_variables
from facilities.globus.transfer_fixtures import TransferFacility, transfer_facility  # noqa: F401

from apps.base.errors import WorkersLost
from apps.base.identity import Place
from apps.base.versions import LOWEST, code_version, library_versions
from apps.site import MARK, examine_site
from site_configs.library.site import Collection, Endpoint, Exchange, Site
from workflows.checks.globus import check_endpoint, check_globus_site, version_of
from workflows.globus.identity import compute_client, globus_app
from workflows.globus.transfer.calls import Backoff

TRAINING, FILES, OTHER, OLD = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "1234")
QUICK = Backoff(poll_s=0.02, slowest_poll_s=0.05, back_off_s=0.02, longest_back_off_s=0.1)
AGENTS: dict[str, dict[str, Any]] = {
    TRAINING: {"endpoint_version": "4.19.0", "hostname": "login1", "status": "online"},
    FILES: {"endpoint_version": "4.19.0", "hostname": "login2", "status": "offline"},
    OLD: {"endpoint_version": "4.5.0", "status": "online"},
}


class Scene:
    """A site with a collection, a driver with one, two endpoints that are known to Globus."""

    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility, self.root = facility, root
        self.here = facility.transfer.add_collection(root / "driver", "laptop")
        self.there = facility.transfer.add_collection(root / "eagle", "project", rules={"in": "rw", "out": "r"})
        folder = self.there.folder
        (folder / "in").mkdir()
        self.server = Collection(self.here.id, self.here.folder)
        self.work = self.here.folder / "runs"
        self.work.mkdir()
        self.agents = {key: dict(facts) for key, facts in AGENTS.items()}
        self.site = Site(
            name="polaris",
            machine="test",
            route="globus",
            carrier="globus",
            provider=lambda _: None,  # type: ignore[arg-type, return-value]
            storage_root=root / "private" / "demo" / "polaris",
            exchange=Exchange(folder / "in" / "demo" / "polaris", folder / "out" / "demo" / "polaris"),
            python_env=Path("/eagle/env"),
            collection=Collection(self.there.id, self.there.folder),
            endpoint=Endpoint(TRAINING),
        )
        for path in ("", "/status"):
            facility.service.route("GET", f"/v2/endpoints/([0-9a-f-]+){path}", self.described)

    def described(self, request: Request, endpoint: str) -> Any:
        self.facility.auth.token_of(request, COMPUTE_SERVER)
        if endpoint == OTHER:
            raise refuse(403, "ENDPOINT_ACCESS_FORBIDDEN", "not yours")
        if endpoint not in self.agents:
            raise refuse(404, "ENDPOINT_NOT_FOUND", "unknown")
        return self.agents[endpoint]

    def answers(self, site: Site | None = None, **settings: Any) -> dict[str, str | None]:
        known = {"server": self.server, "work": self.work, "backoff": QUICK, "limit_s": 20.0, **settings}
        return dict(check_globus_site(site or self.site, known.pop("server"), **known))

    def problem(self, text: str, **settings: Any) -> str | None:
        """Return the problem of the one check that has this text."""
        found = {what: problem for what, problem in self.answers(**settings).items() if text in what}
        assert len(found) == 1, found
        return next(iter(found.values()))

    def left(self) -> list[Path]:
        return [*self.here.folder.rglob("*probe*"), *self.there.folder.rglob("*probe*")]


@pytest.fixture
def scene(
    transfer_facility: TransferFacility,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    for name, value in client_variables(transfer_facility.service, transfer_facility.account).items():
        monkeypatch.setenv(name, value)
    yield Scene(transfer_facility, tmp_path)


def test_all_is_well(scene: Scene) -> None:
    found = scene.answers()
    assert set(found.values()) == {None}
    shown = "\n".join(found)
    for text in (
        scene.facility.account.client_id,
        "Globus Compute: token until",
        "collection project",
        f"endpoint for training ({TRAINING}) is online, agent 4.19.0 on login1",
        "collection can be written in /",
        "1 MB goes to the site in ",
        "its SHA-256 unchanged",
        "checked by the first task",
    ):
        assert text in shown
    assert scene.left() == []
    assert [task.document["verify_checksum"] for task in scene.facility.transfer.tasks[:2]] == [True, True]


def test_the_folder_that_is_there_is_the_nearest_one(scene: Scene) -> None:
    assert scene.problem("collection can be written in /in") is None
    scene.site.incoming.mkdir(parents=True)
    assert scene.problem("collection can be written in /in/demo/polaris") is None
    (scene.there.folder / "in").rename(scene.there.folder / "elsewhere")
    assert "path not allowed: /" in str(scene.problem("can be read and written"))


def test_endpoints_that_do_not_answer(scene: Scene) -> None:
    client = compute_client(globus_app())
    named = {name: check_endpoint(client, "x", name)[1] for name in (FILES, OTHER, OLD, OLD.replace("4", "9"))}
    assert list(named.values()) == [
        "it is offline. Start its agent on login2: ./endpoints.sh start",
        "it belongs to another identity",
        "its agent is 4.5.0, required is 4.10 or later. Update globus-compute-endpoint there",
        "there is none with this id",
    ]
    both = dataclasses.replace(scene.site, endpoint=Endpoint(TRAINING, FILES))
    found = scene.answers(both)
    assert "it is offline" in str(found[f"endpoint for files ({FILES})"])


def test_a_login_that_is_no_good_ends_the_questions(scene: Scene) -> None:
    scene.facility.auth.change_secret(scene.facility.account)
    found = scene.answers()
    assert list(found) == ["login"] and "refuses the service account" in str(found["login"])
    assert scene.facility.account.secret not in str(found)


def test_no_access(scene: Scene) -> None:
    scene.there.allowed = set()
    problem = scene.problem("can be read and written")
    assert "EndpointPermissionDenied" in str(problem) and "read and write access for this identity" in str(problem)
    assert scene.left() == [] and not scene.facility.transfer.tasks


def test_a_collection_that_is_not_there(scene: Scene) -> None:
    gone = dataclasses.replace(scene.site, collection=Collection(OTHER, scene.there.folder))
    found = scene.answers(gone)
    assert "404 EndpointNotFound" in str(found[f"collection {OTHER}"])
    assert "Check the collection's id" in str(found[f"collection {OTHER} can be read and written"])


def test_a_collection_that_is_off(scene: Scene) -> None:
    scene.there.online = False
    assert "no answer in time: " in str(scene.problem("can be read and written", limit_s=0.3))


def test_a_transfer_that_stands_still(scene: Scene) -> None:
    scene.here.online = False
    problem = str(scene.problem("1 MB goes to the site and comes back", limit_s=1.0))
    assert "CONNECTION_FAILED" in problem
    assert scene.left() == []


def test_a_site_that_gives_back_something_else(scene: Scene) -> None:
    """A folder that is not what its collection shows: the file goes elsewhere."""
    server = Collection(scene.here.id, scene.here.folder / "runs")
    problem = str(scene.problem("1 MB goes to the site and comes back", server=server, limit_s=2.0))
    assert "the file was not found at" in problem and "Check the folders of both collections" in problem
    assert scene.left() == []


def test_a_driver_without_a_collection(scene: Scene) -> None:
    assert "Set globus.collection and globus.folder" in str(scene.problem("1 MB goes", server=None))
    outside = scene.problem("1 MB goes", work=scene.root)
    assert "is not below" in str(outside) and scene.left() == []


def test_storage_that_this_machine_sees_is_not_carried(scene: Scene) -> None:
    shared = dataclasses.replace(scene.site, carrier="shared", collection=None)
    found = scene.answers(shared, server=None)
    assert set(found.values()) == {None} and not any("collection" in what for what in found)


def test_a_batch_site_that_is_carried_has_no_endpoint(scene: Scene) -> None:
    carried = dataclasses.replace(scene.site, route="batch", endpoint=None)
    found = scene.answers(carried)
    assert set(found.values()) == {None} and not any("endpoint" in what for what in found)


def test_the_project_at_the_site(scene: Scene) -> None:
    scene.agents[FILES]["status"] = "online"
    site = dataclasses.replace(scene.site, endpoint=Endpoint(TRAINING, FILES))
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    answer: dict[str, Any] = {"versions": ours, "storage": None}
    asked: list[str] = []

    def ask(there: Site) -> dict[str, Any]:
        asked.append(there.name)
        there.outgoing.mkdir(parents=True, exist_ok=True)
        (there.outgoing / MARK).touch()
        return answer

    assert set(scene.answers(site, ask=ask).values()) == {None} and asked == ["polaris"]
    answer |= {"versions": {**ours, "torch": "1.0"}, "storage": "Permission denied (/eagle)"}
    found = [problem for problem in scene.answers(site, ask=ask).values() if problem]
    assert found == [f"torch 1.0 is older than {LOWEST['torch']}", "Permission denied (/eagle)"]

    def lost(_: Site) -> dict[str, Any]:
        raise WorkersLost("/eagle/env/bin/python cannot run crossfed: no module named apps")

    assert "cannot run crossfed" in str([p for p in scene.answers(site, ask=lost).values() if p])


def test_a_collection_that_shows_another_folder(scene: Scene) -> None:
    """The site writes where it should, and Globus would carry to somewhere else."""
    scene.agents[FILES]["status"] = "online"
    site = dataclasses.replace(scene.site, endpoint=Endpoint(TRAINING, FILES))
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}

    def ask(there: Site) -> dict[str, Any]:
        return marked(there, ours)

    seen = "the collection shows what the site writes"
    assert scene.problem(seen, site=site, ask=ask) is None
    wrong = dataclasses.replace(site, collection=Collection(scene.there.id, scene.root))
    problem = str(scene.problem(seen, site=wrong, ask=ask))
    assert "path not allowed: /eagle/out/demo/polaris/.crossfed-here" in problem
    scene.there.rules = None
    problem = str(scene.problem(seen, site=wrong, ask=ask))
    assert problem.startswith("not at /eagle/out/demo/polaris/.crossfed-here. Set collection_folder to")


def marked(site: Site, versions: dict[str, Any]) -> dict[str, Any]:
    """What the genuine ``examine_site`` does at a site."""
    return {
        **examine_site(Place(site=site.name, round=0), str(site.storage_root), str(site.outgoing)),
        "versions": versions,
    }


def test_versions_of_agents() -> None:
    assert version_of("4.19.0") == (4, 19, 0) and version_of("4.19.0a1") == (4, 19) and version_of("x") == ()
    assert version_of("4.9.9") < (4, 10) <= version_of("4.10.0")

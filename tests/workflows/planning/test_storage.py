"""Refusals before a start: storage, free space and Globus collections that do not fit a campaign."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from campaigns import nano

from apps.base.errors import UserMistake
from workflows.planning.campaign import Campaign
from workflows.planning.plan import make_plan
from workflows.planning.storage import SPARE_BYTES, check_space

IDS = [f"{n:08d}-0000-4000-8000-000000000000" for n in range(3)]


def globus_entry(root: str, endpoint: str = IDS[0], **settings: Any) -> dict[str, Any]:
    return {
        "config": "local",
        "route": "globus",
        "endpoint": endpoint,
        "storage_root": root,
        "python_env": "/opt/env",
        "collection": IDS[1],
        "collection_folder": "/data/shown",
        "tasks": ["chemical_reaction"],
        **settings,
    }


def plan(tmp_path: Path, sites: dict[str, Any], **changes: Any) -> Any:
    globus = {"collection": IDS[2], "folder": str(tmp_path)}
    return make_plan(
        Campaign.model_validate(nano(sites=sites, globus=globus) | changes), tmp_path / "r", Path("c.yaml")
    )


def test_a_globus_site_is_planned(tmp_path: Path) -> None:
    near = {"config": "local", "tasks": ["molecule_description"]}
    made = plan(tmp_path, {"far": globus_entry("/data/far"), "near": near})
    far = made.sites["far"]
    assert (far.route, far.carrier, far.collection.path_of(far.outgoing)) == ("globus", "globus", "/out/r/far")
    assert (made.site_work["far"]["out"], made.site_work["far"]["shared"]) == ("/data/shown/out/r/far", "/data/shown")
    assert (made.site_work["near"]["out"], made.site_work["near"]["shared"]) == (str(tmp_path / "r/sites/near/out"), "")
    assert made.site_work["far"]["root"] == "/data/far" and made.sites["near"].carrier == "copy"


def test_transfer_needs_a_collection_here(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="globus: sites.far is reached by Globus Transfer, which needs a collection"):
        plan(tmp_path, {"far": globus_entry("/data/far")}, globus=None)


def test_the_run_directory_lies_in_the_collection_here(tmp_path: Path) -> None:
    globus = {"collection": IDS[2], "folder": "/somewhere/else"}
    with pytest.raises(UserMistake, match=f"{tmp_path / 'r'} is not below /somewhere/else"):
        plan(tmp_path, {"far": globus_entry("/data/far")}, globus=globus)


def test_the_same_path_at_two_facilities_is_two_folders(tmp_path: Path) -> None:
    tasks = {"tasks": ["molecule_description"]}
    other = globus_entry("/data/x", IDS[1], **tasks)
    assert len(plan(tmp_path, {"a": globus_entry("/data/x"), "b": other}).sites) == 2
    with pytest.raises(UserMistake, match="sites.b: stores in /data/x as a does; each site needs its own storage"):
        plan(tmp_path, {"a": globus_entry("/data/x"), "b": globus_entry("/data/x", **tasks)})


def test_data_and_model_at_a_site_are_not_checked_here(tmp_path: Path) -> None:
    entry = globus_entry("/data/far", data="/private/records", model="/data/weights")
    made = plan(tmp_path, {"far": entry})
    assert made.site_work["far"]["data"]["source"] == "/private/records"
    assert made.site_work["far"]["model"]["source"] == "/data/weights"
    assert made.server_work["model"]["source"] == "tiny"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("data", "/data/shown/records"),
        ("data", "/data/far/../shown/records"),
        ("python_env", "/data/shown/env"),
        ("python_env", "/data"),
    ],
)
def test_private_records_and_code_lie_outside_a_shared_folder(key: str, path: str, tmp_path: Path) -> None:
    told = rf"sites.far.{key}: {re.escape(path)} and /data/shown, which the driver reaches .* beside /data/shown"
    with pytest.raises(UserMistake, match=told) as caught:
        plan(tmp_path, {"far": globus_entry("/data/far", **{key: path})})
    assert "\n" not in str(caught.value)


def test_a_mapped_collection_shows_only_what_the_account_may_read(tmp_path: Path) -> None:
    inside = {"data": "/data/records", "python_env": "/data/env"}
    assert plan(tmp_path, {"far": globus_entry("/data/far", collection_folder="/", mapped=True, **inside)}).sites
    own = {"config": "polaris", "collection": None, "collection_folder": None, "account": "ABC"}
    entry = globus_entry("/eagle/ABC/cf", data="/eagle/ABC/records", **own) | {"python_env": "/eagle/ABC/env"}
    assert plan(tmp_path, {"far": {key: value for key, value in entry.items() if value}}).sites


def test_links_into_a_shared_folder_are_followed_if_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "records").symlink_to(tmp_path / "shown")
    entry = {
        "config": "local",
        "carrier": "globus",
        "collection": IDS[1],
        "collection_folder": str(tmp_path / "shown"),
        "storage_root": str(tmp_path / "far"),
        "tasks": ["chemical_reaction"],
    }
    with pytest.raises(UserMistake, match="sites.far.data: .*/records and .*/shown, which"):
        plan(tmp_path, {"far": {**entry, "data": str(tmp_path / "records")}})
    assert plan(tmp_path, {"far": {**entry, "data": "embedded"}}).sites
    (tmp_path / "far").symlink_to(tmp_path / "shown")
    with pytest.raises(UserMistake, match="sites.far.storage_root: .*/far and .*/shown, which"):
        plan(tmp_path, {"far": {**entry, "data": "embedded"}})


def test_a_full_disk_is_reported_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserMistake, match="has 200 MB of free disk space. Free some and start again"):
        check_space(tmp_path / "not" / "there")

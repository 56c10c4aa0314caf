"""Tests of the settings that every machine takes: route, endpoints, collection, carrier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_configs.library.globus_settings import KEYS, split_settings
from site_configs.library.resolve import SiteConfigError, available, resolve_site
from site_configs.library.site import Collection, Endpoint, Site

ENDPOINT, FILES, COLLECTION = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123")
FOLDERS = {
    "aurora": "/flare/ABC",
    "frontier": "/lustre/orion/abc/proj",
    "perlmutter": "/pscratch/sd/a/ada",
    "perlmutter_80gb": "/pscratch/sd/a/ada",
    "polaris": "/eagle/ABC",
}


def settings(machine: str, **changes: Any) -> dict[str, Any]:
    """Return settings that reach a machine through Globus."""
    root = FOLDERS.get(machine, "/data/ada")
    account = {} if machine == "local" else {"account": "ABC"}
    shown = {"collection": COLLECTION, "collection_folder": f"{root}/shown"}
    reached = {"route": "globus", "endpoint": ENDPOINT, **shown}
    given = {"storage_root": f"{root}/crossfed", "python_env": f"{root}/env", **account, **reached, **changes}
    return {key: value for key, value in given.items() if value is not None}


def resolved(tmp_path: Path, machine: str = "polaris", **changes: Any) -> Site:
    return resolve_site("there", machine, tmp_path / "run", settings(machine, **changes))


@pytest.mark.parametrize("machine", available())
def test_every_machine_can_be_reached_through_globus(machine: str, tmp_path: Path) -> None:
    site, root = resolved(tmp_path, machine), Path(FOLDERS.get(machine, "/data/ada"))
    assert (site.route, site.carrier, site.endpoint) == ("globus", "globus", Endpoint(ENDPOINT))
    assert site.collection == Collection(COLLECTION, root / "shown") and site.python_env == root / "env"
    folders = [site.collection.path_of(folder) for folder in (site.incoming, site.outgoing)]
    assert folders == ["/in/run/there", "/out/run/there"] and not site.collection.shares(site.storage_root)
    assert (site.block is None) == (machine == "local")  # the facility's rules apply here too


@pytest.mark.parametrize("machine", available())
def test_without_these_settings_nothing_changes(machine: str, tmp_path: Path) -> None:
    root = FOLDERS.get(machine, "/data/ada")
    own = {"storage_root": root} | ({} if machine == "local" else {"account": "ABC"})
    site = resolve_site("there", machine, tmp_path, own)
    assert (site.route, site.carrier, site.endpoint) == ("local" if machine == "local" else "batch", "copy", None)


def test_endpoints_and_their_time_limits(tmp_path: Path) -> None:
    site = resolved(tmp_path, files_endpoint=FILES, silence="20m", longest_queue="3-00:00:00")
    assert site.endpoint == Endpoint(ENDPOINT, FILES, 1200, 3 * 24 * 3600)
    assert resolved(tmp_path, endpoint=ENDPOINT.replace("-", "")).endpoint == Endpoint(ENDPOINT)


def test_a_machines_own_collection(tmp_path: Path) -> None:
    own = "05d2c76a-e867-4f67-aa57-76edeb0beda0"
    site = resolved(tmp_path, collection=None, collection_folder=None)
    assert site.collection == Collection(own, Path("/eagle"), mapped=True)
    assert site.storage_root == Path("/eagle/ABC/crossfed/run/there") and site.shared_folder is None
    assert site.collection.path_of(site.incoming) == "/ABC/crossfed-exchange/in/run/there"
    assert site.collection.path_of(site.outgoing) == "/ABC/crossfed-exchange/out/run/there"
    named = resolved(tmp_path, collection=None, collection_folder=None, exchange="/eagle/ABC/x")
    assert named.outgoing == Path("/eagle/ABC/x/out/run/there")
    plain = resolved(tmp_path, "slurm", collection_folder="/", mapped=True)
    assert plain.incoming == Path("/data/ada/crossfed-exchange/in/run/there")
    assert resolved(tmp_path, collection=own, collection_folder=None).collection == site.collection
    moved = resolved(tmp_path, collection=None, collection_folder="/eagle/ABC")
    assert moved.collection == Collection(own, Path("/eagle/ABC"), mapped=True)


@pytest.mark.parametrize(
    ("folder", "path", "shared"),
    [
        ("/eagle/ABC/cf", "/eagle/ABC/cf", True),
        ("/eagle/ABC/cf", "/eagle/ABC/cf/env", True),
        ("/eagle/ABC/cf/", "/eagle/ABC/x/../cf/env", True),
        ("/eagle/ABC/cf", "/eagle/ABC/cf/../env", False),
        ("/eagle/ABC/cf", "/eagle/ABC/cf-records", False),
        ("/", "/eagle/ABC/cf", True),
        ("/eagle/ABC/cf/shown", "/eagle/ABC/cf", True),
        ("/eagle/ABC/cf", "records", False),
    ],
)
def test_what_a_guest_collection_shares(folder: str, path: str, shared: bool) -> None:
    assert Collection(COLLECTION, Path(folder)).shares(Path(path)) == shared
    assert not Collection(COLLECTION, Path(folder), mapped=True).shares(Path(path))


@pytest.mark.parametrize("carrier", ["copy", "shared"])
def test_storage_that_this_machine_can_read_needs_no_collection(carrier: str, tmp_path: Path) -> None:
    site = resolved(tmp_path, "local", carrier=carrier, collection=None, collection_folder=None)
    assert (site.carrier, site.collection) == (carrier, None)
    assert site.outgoing == site.storage_root / "out"


def test_an_endpoint_of_alcf_keeps_no_task_for_longer_than_two_days(tmp_path: Path) -> None:
    hour = 3600
    assert resolved(tmp_path, endpoint_template="alcf").endpoint == Endpoint(ENDPOINT, "", 1800, 47 * hour, "alcf")
    for wanted, queue_s in (("12h", 12 * hour), ("7-00:00:00", 47 * hour)):
        endpoint = resolved(tmp_path, endpoint_template="alcf", longest_queue=wanted).endpoint
        assert endpoint and endpoint.queue_s == queue_s
    for machine in ("perlmutter", "local"):
        with pytest.raises(
            SiteConfigError, match=f"endpoint_template: alcf is for machines with pbs, not for {machine}"
        ):
            resolved(tmp_path, machine, endpoint_template="alcf")


def test_a_batch_site_may_use_globus_transfer(tmp_path: Path) -> None:
    site = resolved(tmp_path, route=None, endpoint=None, python_env=None, carrier="globus")
    assert (site.route, site.carrier, site.collection) == (
        "batch",
        "globus",
        Collection(COLLECTION, Path("/eagle/ABC/shown")),
    )
    assert resolved(tmp_path, route="batch", endpoint=None).route == "batch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": None}, r"route: globus needs endpoint, .* python workflows/setup_site.py polaris$"),
        ({"python_env": None}, "route: globus needs python_env, the folder at the site .* does not exist there$"),
        ({"endpoint": "polaris"}, "endpoint: 'polaris' is not a UUID such as 4b116d3c-"),
        ({"files_endpoint": "x"}, "files_endpoint: 'x' is not a UUID"),
        ({"collection": "x"}, "collection: 'x' is not a UUID"),
        ({"collection_folder": None}, "collection needs collection_folder: the folder of the site's file system"),
        ({"collection_folder": "ABC"}, "collection_folder: ABC is relative"),
        (
            {"storage_root": "/eagle/ABC/shown/x"},
            "storage_root: /eagle/ABC/shown/x/run/there and /eagle/ABC/shown, .*overlap",
        ),
        ({"collection_folder": "/"}, "storage_root: .* and /, which the collection shares, .*Set .*or mapped: true"),
        ({"collection_folder": "/eagle/ABC/crossfed/run/there/x"}, "storage_root: .* overlap"),
        ({"exchange": "/home/ada"}, "exchange: /home/ada/in/run/there is not below /eagle/ABC/shown, .*Set exchange"),
        ({"exchange": "ada"}, "exchange: ada is relative"),
        ({"endpoint_template": "nersc"}, "endpoint_template: Input should be 'crossfed' or 'alcf'"),
        ({"carrier": "rsync"}, "carrier: Input should be 'copy', 'shared' or 'globus'"),
        ({"route": "local"}, "route: polaris is reached by 'batch' or by 'globus', not by 'local'"),
        ({"route": "batch"}, "endpoint: only goes with route: globus"),
        ({"route": None, "endpoint": None, "silence": "1h"}, "silence: only goes with route: globus"),
        ({"silence": "soon"}, "silence: .*soon"),
    ],
)
def test_errors_have_key_and_remedy(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match=message):
        resolved(tmp_path, **changes)


def test_the_queues_rules_apply_through_globus_too(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError) as message:
        resolved(tmp_path, nodes=2, walltime="200:00:00")
    assert "capacity" in str(message.value)


def test_a_workstation_needs_a_folder_and_a_collection(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="route: globus needs storage_root, a folder at the site"):
        resolved(tmp_path, "local", storage_root=None)
    with pytest.raises(SiteConfigError, match="carrier: globus needs collection, .* or set carrier to copy or shared"):
        resolved(tmp_path, "local", collection=None, collection_folder=None)
    with pytest.raises(SiteConfigError, match="collection_folder: needs collection"):
        resolved(tmp_path, "local", collection=None)


def test_a_mistyped_setting_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="endpont: unknown setting, did you mean 'endpoint'"):
        resolved(tmp_path, endpont=ENDPOINT)
    with pytest.raises(SiteConfigError, match="zzz: unknown setting; .*every machine takes: route, endpoint"):
        resolved(tmp_path, zzz=1)


@given(st.dictionaries(st.sampled_from([*KEYS, "account", "nodes", "python_env"]), st.integers()))
def test_splitting_loses_no_setting(given: dict[str, Any]) -> None:
    for known in ({"account": 1, "python_env": 1}, {"account": 1}):
        own, ours = split_settings(given, known)
        assert {**own, **ours} == given and not own.keys() & ours.keys()
        assert ("python_env" in ours) == ("python_env" in given and "python_env" not in known)

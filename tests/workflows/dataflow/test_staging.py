"""Where models are sent to and which stores this machine cannot look into."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from site_configs.library.site import Collection, Site
from site_configs.local import site as local_site
from workflows.dataflow.staging import Staging
from workflows.globus.transfer.staging import GlobusStaging
from workflows.planning.storage import stores_at, unseen_stores

HERE = "/run/artifacts"


def far_site(name: str, folder: str, collection: str = "eagle") -> Site:
    made = local_site(name, Path("/run"), storage_root=Path(folder))
    return dataclasses.replace(made, carrier="globus", collection=Collection(collection))


class Calls:
    """Stands for the engine's submit; a call's future is its own record."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def __call__(self, function: Any, site: str, number: int, *args: Any, on: str) -> Any:
        self.made.append((function.__name__, site, number, args, on))
        return f"{function.__name__} of {site}"


def ways(sites: dict[str, Site], calls: Calls) -> Staging:
    roots = {name: {"root": str(site.storage_root)} for name, site in sites.items()}
    plan: Any = SimpleNamespace(rules="rules", sites=sites, site_work=roots)
    carriage: Any = object.__new__(GlobusStaging)
    return Staging(plan, HERE, calls, carriage)


def test_sites_that_share_storage_share_a_store() -> None:
    sites = {
        "one": far_site("one", "/p/run/one"),
        "two": far_site("two", "/p/run/two"),
        "other": far_site("other", "/q/run/other"),
        "elsewhere": far_site("elsewhere", "/p/run/elsewhere", "flare"),
    }
    assert stores_at(sites) == {
        "one": "/p/run/one/artifacts",
        "two": "/p/run/one/artifacts",
        "other": "/q/run/other/artifacts",
        "elsewhere": "/p/run/elsewhere/artifacts",
    }


def test_only_what_globus_carries_is_out_of_sight() -> None:
    sites = {"far": far_site("far", "/p/far"), "near": local_site("near", Path("/run"))}
    assert unseen_stores(sites) == {"/p/far/artifacts"}


def test_the_server_s_worker_copies_where_it_sees_the_storage() -> None:
    calls = Calls()
    near = local_site("near", Path("/run"))
    way = ways({"near": near, "linked": dataclasses.replace(near, name="linked", carrier="shared")}, calls)
    way.out("near", 2, "model", 1)  # type: ignore[arg-type]
    way.back("linked", 2, "manifest", "base", 1)  # type: ignore[arg-type]
    store = "/run/sites/near/artifacts"
    assert calls.made == [
        ("stage_out", "near", 2, ("model", HERE, store), "server"),
        ("stage_in", "linked", 2, ("manifest", "base", store, HERE, "rules", True), "server"),
    ]


def test_globus_carries_and_the_server_checks_what_came() -> None:
    calls = Calls()
    way = ways({"far": far_site("far", "/p/far")}, calls)
    way.out("far", 3, "model", 2)  # type: ignore[arg-type]
    way.back("far", 3, "manifest", "base", 2)  # type: ignore[arg-type]
    assert calls.made == [
        ("send", "far", 3, ("model", HERE, "/p/far/artifacts", 2), "transfers"),
        ("fetch", "far", 3, ("manifest", HERE, 2), "transfers"),
        ("stage_in", "far", 3, ("fetch of far", "base", HERE, HERE, "rules"), "server"),
    ]

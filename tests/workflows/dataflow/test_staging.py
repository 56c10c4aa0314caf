"""Where models are sent to and which stores this machine cannot look into."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from apps.base.identity import Place
from site_configs.library.site import Collection, Exchange, Site
from site_configs.local import site as local_site
from workflows.dataflow.staging import Staging, staging_of
from workflows.globus.transfer.staging import GlobusStaging
from workflows.planning.storage import stores_at, unseen_stores

HERE = "/run/artifacts"


def far_site(name: str, folder: str, collection: str = "eagle") -> Site:
    made = local_site(name, Path("/run"), storage_root=Path(folder))
    shown = Path(folder).parent
    exchange = Exchange(shown / "in" / name, shown / "out" / name)
    return dataclasses.replace(made, carrier="globus", collection=Collection(collection), exchange=exchange)


class Recorder:
    """Stands for Parsl: records each call; the future of a call is a text."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, function: Any, on: str) -> Any:
        def submit(place: Place, *args: Any) -> str:
            self.calls.append((function.__name__, place["site"], place["round"], args, on))
            return f"{function.__name__} of {place['site']}"

        return submit


def staging(name: str, sites: dict[str, Site], calls: Recorder) -> Staging:
    plan: Any = SimpleNamespace(rules="rules", sites=sites, server_work={"store": HERE})
    return staging_of(name, plan, calls, object.__new__(GlobusStaging))


def test_sites_that_share_storage_share_a_store() -> None:
    sites = {
        "one": far_site("one", "/p/run/one"),
        "two": far_site("two", "/p/run/two"),
        "other": far_site("other", "/q/run/other"),
        "elsewhere": far_site("elsewhere", "/p/run/elsewhere", "flare"),
    }
    assert stores_at(sites) == {
        "one": "/p/run/in/one",
        "two": "/p/run/in/one",
        "other": "/q/run/in/other",
        "elsewhere": "/p/run/in/elsewhere",
    }


def test_only_what_globus_carries_is_out_of_sight() -> None:
    sites = {"far": far_site("far", "/p/far"), "near": local_site("near", Path("/run"))}
    assert unseen_stores(sites) == {"/p/in/far", "/p/out/far"}


def test_the_server_copies_where_it_sees_the_storage() -> None:
    calls = Recorder()
    near = local_site("near", Path("/run"))
    sites = {"near": near, "linked": dataclasses.replace(near, name="linked", carrier="shared")}
    staging("near", sites, calls).stage_out(Place(site="near", round=2), "model", 1)
    staging("linked", sites, calls).stage_in(Place(site="linked", round=2), "manifest", "base", 1)
    staging("near", sites, calls).forget(Place(site="near", round=3), "base", "earlier", "manifest")
    there, back = "/run/sites/near/in", "/run/sites/near/out"
    assert calls.calls == [
        ("stage_out", "near", 2, ("model", HERE, there), "server"),
        ("stage_in", "linked", 2, ("manifest", "base", back, HERE, "rules", True), "server"),
        ("forget", "near", 3, (there, back, "base", "earlier", "manifest"), "server"),
    ]


def test_globus_transfers_and_the_server_checks_what_arrives() -> None:
    calls, place = Recorder(), Place(site="far", round=3)
    far = staging("far", {"far": far_site("far", "/p/far")}, calls)
    far.stage_out(place, "model", 2)
    far.stage_in(place, "manifest", "base", 2)
    far.forget(place, "base", "earlier", "manifest")
    assert calls.calls == [
        ("send", "far", 3, ("model", HERE, "/p/in/far", 2), "transfers"),
        ("fetch", "far", 3, ("manifest", "base", HERE, 2), "transfers"),
        ("stage_in", "far", 3, ("fetch of far", "base", HERE, HERE, "rules"), "server"),
        ("forget_at_collection", "far", 3, ("base", "earlier"), "transfers"),
    ]

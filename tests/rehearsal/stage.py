"""The set-up of a rehearsal: world, places, Globus, materials, and the command line of the campaign."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rehearsal.campaign import (
    SHIPPED,
    SmallCampaign,
    model_folder,
    records_file,
    remote_values,
    shared_folder,
    site_values,
    small_values,
)
from rehearsal.facility import Facility
from rehearsal.network import make_world
from rehearsal.services import Services, fill_in_policy, globus_services, set_up_endpoint, write_setup
from rehearsal.world import PROJECT, Place, start_place

HERE = Path(__file__).resolve().parent
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How small the campaign is."""

    rounds: int
    steps: int
    seed: int = 1
    short: bool = False

    def of_everything(self, driver: Facility, sites: int) -> dict[str, Any]:
        """Return the values that do not depend on where the sites are."""
        # a quorum of all, so that every version of the model is made of the same updates
        return small_values(driver, self.rounds, self.steps) | {"strategy.quorum": sites}


@dataclass(frozen=True)
class Stage:
    """What a rehearsal has been set up with."""

    places: dict[str, Place]
    services: Services | None
    campaign: SmallCampaign


@contextmanager
def stage(
    root: Path, sites: Sequence[str], size: Size, agent: Path | None, say: Callable[[str], None]
) -> Iterator[Stage]:
    """Yield everything that a campaign at these sites needs; the driver is at the site that is not behind Globus.

    Args:
        root: folder of all files.
        sites: of the shipped campaign, the driver's first.
        size: of the campaign.
        agent: environment of the Globus Compute agent; None: only the first site takes part.
        say: takes a line of progress.
    """
    make_world()
    materials = root / "materials"
    materials.mkdir()
    run_script("materials.py", materials, size.seed)
    with ExitStack() as exits:
        services = exits.enter_context(globus_services(root)) if len(sites) > 1 else None
        if services:
            say("Globus: RabbitMQ, Auth, Compute and Transfer are up")
        places = {name: exits.enter_context(start_place(name, root, agent)) for name in sites}
        for place in places.values():
            say(f"{place.facility.name}: {place.facility.scheduler} with 2 nodes, login node {place.facility.login}")
            put_materials(materials, place)
        driver = places[sites[0]]
        campaign = SmallCampaign(driver, sets=size.of_everything(driver.facility, len(sites)))
        campaign.driver.path(campaign.folder).mkdir()
        for name in sites:
            shutil.copy(HERE / "machine.py", driver.path("/home/user") / f"{name}.py")
        entries = {sites[0]: site_values(driver, f"/home/user/{sites[0]}.py")}
        if services:
            entries |= _remote_entries(driver, places, services, size, campaign, say)
        for site, entry in entries.items():
            campaign.sets |= {f"sites.{site}.{key}": value for key, value in entry.items()}
        campaign.sets |= {"server.site": sites[0], "evaluation.site": sites[0]}  # login nodes are no place for it
        yield Stage(places, services, campaign)


def _remote_entries(
    driver: Place,
    places: dict[str, Place],
    services: Services,
    size: Size,
    campaign: SmallCampaign,
    say: Say,
) -> dict[str, dict[str, Any]]:
    own = services.transfer.add_collection(driver.path(campaign.folder), "driver")
    campaign.sets |= {"globus.collection": own.id, "globus.folder": campaign.folder}
    campaign.variables |= services.variables()
    remote = [place for place in places.values() if place is not driver]

    def written(place: Place, collection: str) -> str:
        """The first one registers the function that all endpoints accept, so one after the other."""
        config = f"/home/user/{place.facility.name}.py"
        values = site_values(place, config)
        asked = {key: values[key] for key in ("account", "storage_root", "ranks_per_node")}
        asked |= remote_values(place.facility, collection, {}) | {"nodes": 2}
        del asked["route"], asked["model"]
        return write_setup(driver, place, services, config, asked, not size.short)

    collections = [services.add_collection(place, shared_folder(place.facility)) for place in remote]
    folders = [written(place, collection) for place, collection in zip(remote, collections, strict=True)]

    def entry(place: Place, collection: str, folder: str) -> dict[str, Any]:
        facility = place.facility
        operator = partial(fill_in_policy, data=records_file(facility), model=model_folder(facility))
        endpoints = set_up_endpoint(driver, place, services, folder, operator, not size.short)
        say(f"{facility.name}: endpoint online, set up by its checklist")
        values = site_values(place, f"/home/user/{facility.name}.py")
        return values | remote_values(facility, collection, endpoints)

    with ThreadPoolExecutor(len(remote)) as pool:
        entries = pool.map(entry, remote, collections, folders)
        return dict(zip([p.facility.name for p in remote], entries, strict=True))


def put_materials(materials: Path, place: Place) -> None:
    """Copy model and data to where a place's user would keep them."""
    facility = place.facility
    shutil.copytree(materials / "model", place.path(model_folder(facility)))
    target = place.path(records_file(facility))
    target.parent.mkdir(parents=True)
    shutil.copy(materials / "smolinstruct" / "data.zip", target)


def run_script(name: str, *arguments: object) -> None:
    """Run a script of this folder in a process of its own, so that this one does not load torch."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    subprocess.run(command, check=True, cwd=HERE.parent)


def shipped_sites() -> list[str]:
    """Return the sites of the shipped campaign, the one whose batch system the driver calls first."""
    entries = yaml.safe_load((PROJECT / SHIPPED).read_text())["sites"]
    return sorted(entries, key=lambda name: entries[name].get("route") == "globus")

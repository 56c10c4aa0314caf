"""Whether the places where files go can hold them, and whether Globus can reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from site_configs.library.site import Site

import shutil
from dataclasses import replace
from pathlib import Path

from apps.base.errors import UserMistake
from data.tasks import EMBEDDED
from site_configs.library.errors import SiteConfigError
from site_configs.library.site import Collection, Site
from workflows.planning.campaign import Campaign

SPARE_BYTES = 200_000_000  # free disk space below which nothing is started


def check_storage(sites: dict[str, Site]) -> None:
    """Raises UserMistake if two sites would store in one folder."""
    owner: dict[tuple[str, Path], str] = {}
    for name, site in sites.items():
        # paths of two facilities may read the same
        root = (site.endpoint.training, site.storage_root) if site.endpoint else ("", site.storage_root.resolve())
        if owner.setdefault(root, name) != name:
            raise UserMistake(
                f"sites.{name}: stores in {root[1]} as {owner[root]} does; each site needs its own storage"
            )


def check_collections(campaign: Campaign, sites: dict[str, Site], run_dir: Path) -> None:
    """Globus Transfer needs a collection at both ends, and both must show what is to be carried."""
    carried = [name for name, site in sites.items() if site.carrier == "globus"]
    if carried and campaign.globus is None:
        raise UserMistake(
            f"globus: sites.{carried[0]} is reached by Globus Transfer, which needs a collection on this machine too",
            remedy="Write the id of one that shows the run directory under globus.collection",
        )
    try:
        for name in carried:
            collection = sites[name].collection
            if collection is None:
                raise SiteConfigError(f"sites.{name}: carrier globus needs a collection")
            collection.path_of(sites[name].storage_root)
            _refuse_shared(sites[name], collection, campaign.sites[name].data)
        if carried and campaign.globus:
            campaign.globus.as_collection().path_of(run_dir)
    except SiteConfigError as error:
        raise UserMistake(str(error)) from None


def _refuse_shared(site: Site, collection: Collection, records: str | None) -> None:
    private = {"data": Path(records) if records and records != EMBEDDED else None, "python_env": site.python_env}
    for key, path in private.items():
        if path is None:
            continue
        refuse_shared(f"sites.{site.name}.{key}", path, collection)
        if site.endpoint is None:  # its file system is seen from here, with its links
            seen = replace(collection, folder=collection.folder.resolve())
            refuse_shared(f"sites.{site.name}.{key}", path, seen, path.expanduser().resolve())


def refuse_shared(key: str, path: Path, collection: Collection, really: Path | None = None) -> None:
    """Records and code must lie where the driver's identity reaches them by no collection.

    Args:
        key: under which the path stands, for the error.
        path: at the site, as given.
        collection: of the site.
        really: the path without links, where that is known.

    Raises:
        UserMistake: the collection shares them.
    """
    if collection.shares(really or path):
        folder = collection.folder
        raise UserMistake(
            f"{key}: {path} lies in {folder}, which the driver may read and write through the site's collection",
            remedy=f"Put it beside {folder}, or let the collection share a smaller folder",
        )


def check_space(run_dir: Path) -> None:
    """Raises UserMistake if the disk of the run directory is as good as full."""
    place = next(p for p in (run_dir, *run_dir.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < SPARE_BYTES:
        raise UserMistake(f"{place} has {free / 1e6:.0f} MB of free disk space", remedy="Free some and start again")


def unseen_stores(sites: dict[str, Site]) -> set[str]:
    """The stores that this machine cannot look into."""
    carried = {name: site for name, site in sites.items() if site.carrier == "globus"}
    return {*stores_at(carried).values(), *(str(site.storage_root / "artifacts") for site in carried.values())}


def stores_at(sites: dict[str, Site]) -> dict[str, str]:
    """Where each site's models are sent to: sites that share a collection and a storage folder share a store, so that
    a model crosses once for all of them; each takes its own copy from there."""
    first: dict[tuple[str, str], str] = {}
    stores = {}
    for name, site in sites.items():
        shared = (site.collection.id if site.collection else name, str(site.storage_root.parent))
        stores[name] = first.setdefault(shared, str(site.storage_root / "artifacts"))
    return stores

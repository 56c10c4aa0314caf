"""Checks of the folders where files go: own storage for each site, free space, and reach of Globus collections."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from apps.base.errors import UserMistake
from data.tasks import EMBEDDED
from site_configs.library.errors import SiteConfigError
from site_configs.library.site import Collection, Site
from workflows.planning.campaign import Campaign

SPARE_BYTES = 200_000_000  # no run starts with less free disk space


def check_storage(sites: Mapping[str, Site]) -> None:
    """Raise UserMistake if two sites would store in one folder."""
    owner: dict[tuple[str, Path], str] = {}
    for name, site in sites.items():
        # equal paths at two facilities are two folders
        root = (site.endpoint.training, site.storage_root) if site.endpoint else ("", site.storage_root.resolve())
        if owner.setdefault(root, name) != name:
            raise UserMistake(
                f"sites.{name}: stores in {root[1]} as {owner[root]} does; each site needs its own storage"
            )


def check_collections(campaign: Campaign, sites: Mapping[str, Site], run_dir: Path) -> None:
    """Check that Globus Transfer has a collection at both ends, and that both show the files to be moved.

    Raises:
        UserMistake: a collection is missing or shows another folder, or it shares records or code.
    """
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
            collection.path_of(sites[name].outgoing)
            _refuse_shared(sites[name], collection, campaign.sites[name].data)
        if carried and campaign.globus:
            campaign.globus.as_collection().path_of(run_dir)
    except SiteConfigError as error:
        raise UserMistake(str(error)) from None


def _refuse_shared(site: Site, collection: Collection, records: str | None) -> None:
    private = {
        "storage_root": site.storage_root,
        "data": Path(records) if records and records != EMBEDDED else None,
        "python_env": site.python_env,
    }
    for key, path in private.items():
        if path is None:
            continue
        refuse_shared(f"sites.{site.name}.{key}", path, collection)
        if site.endpoint is None:  # its file system is visible from here, so that links can be resolved
            resolved = replace(collection, folder=collection.folder.resolve())
            refuse_shared(f"sites.{site.name}.{key}", path, resolved, path.expanduser().resolve())


def refuse_shared(key: str, path: Path, collection: Collection, resolved: Path | None = None) -> None:
    """Check that a path of the site's own files cannot be reached by the driver's identity through a collection.

    Args:
        key: of the path, for the error.
        path: at the site, as given.
        collection: of the site.
        resolved: the path without links, where that is known.

    Raises:
        UserMistake: the collection shares the path.
    """
    if collection.shares(resolved or path):
        folder = collection.folder
        raise UserMistake(
            f"{key}: {path} and {folder}, which the driver reaches through the site's collection, overlap",
            remedy=f"Put it beside {folder}, or let the collection share a smaller folder",
        )


def check_space(run_dir: Path) -> None:
    """Raise UserMistake if the disk of the run directory is nearly full."""
    place = next(p for p in (run_dir, *run_dir.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < SPARE_BYTES:
        raise UserMistake(f"{place} has {free / 1e6:.0f} MB of free disk space", remedy="Free some and start again")


def unseen_stores(sites: Mapping[str, Site]) -> set[str]:
    """Return the artifact stores that this machine cannot read."""
    carried = {name: site for name, site in sites.items() if site.carrier == "globus"}
    return {*stores_at(carried).values(), *(str(site.outgoing) for site in carried.values())}


def stores_at(sites: Mapping[str, Site]) -> dict[str, str]:
    """Return the store to which each site's models are sent.

    Sites that share a collection and its folder share a store: a model is moved once for all of them, and each copies
    it from there.
    """
    first: dict[tuple[str, str], str] = {}
    stores = {}
    for name, site in sites.items():
        shared = (site.collection.id if site.collection else name, str(site.incoming.parent))
        stores[name] = first.setdefault(shared, str(site.incoming))
    return stores

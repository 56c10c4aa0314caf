"""What a transfer study is about: the campaign's sites, the files, its folder, and the ways to the sites."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import UserMistake
from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.site import Site
from workflows.planning.campaign import Campaign
from workflows.planning.campaign_file import differences, load_campaign
from workflows.planning.storage import check_collections, check_storage
from workflows.records.run_directory import RUNS, RunDirectory, open_new
from workflows.studies.transfers.carriers import Carrier, FolderCarrier, Stores
from workflows.studies.transfers.models import StudyModel, file_bytes, model_of
from workflows.studies.transfers.points import RoundTrip, StudyFile, trips_of
from workflows.studies.transfers.rows import read_rows

if TYPE_CHECKING:
    from globus_sdk import TransferClient

TABLE = "transfers.csv"
SITES = "study_sites"


@dataclass(frozen=True)
class TransferStudy:
    """A checked study.

    Attributes:
        folder: of the study.
        models: that were asked for, by name.
        trips: that are to be made; not those in the table.
        planned: trips of the whole study.
    """

    campaign: Campaign
    folder: Path
    sites: Mapping[str, Site]
    models: Mapping[str, StudyModel]
    trips: Sequence[RoundTrip]
    planned: int

    @property
    def table(self) -> Path:
        return self.folder / TABLE


def prepare(options: argparse.Namespace) -> TransferStudy:
    """Read and check what was asked for; nothing is written yet.

    Raises:
        UserMistake: names the file and the key.
    """
    campaign = load_campaign(options.campaign, options.sets, options.sites)
    folder = (options.out or RUNS / f"{campaign.name}-transfers").resolve()
    sites = {name: _site(name, campaign, folder) for name in campaign.sites}
    check_storage(sites)
    check_collections(campaign, sites, folder)
    models = chosen_models(options.models)
    loads = [StudyFile(model, file_bytes(model, options.dtype)) for model in models.values()]
    done = {row.key for row in read_rows(folder / TABLE)}
    trips = trips_of(sites.values(), loads, options.repeat, done)
    return TransferStudy(campaign, folder, sites, models, trips, len(sites) * len(loads) * options.repeat)


def _site(name: str, campaign: Campaign, folder: Path) -> Site:
    entry = campaign.sites[name]
    try:
        return resolve_site(name, entry.config or name, folder, entry.settings)
    except SiteConfigError as error:
        raise UserMistake(f"sites.{name}: {error}") from None


def chosen_models(names: Sequence[str]) -> dict[str, StudyModel]:
    """Name -> model. Raises UserMistake for an unknown one, none at all, or two of one name."""
    models: dict[str, StudyModel] = {}
    for text in names:
        model = model_of(text)
        if model.name in models:
            raise UserMistake(f"--models: {model.name} stands there twice")
        models[model.name] = model
    if not models:
        raise UserMistake("--models: name at least one model")
    return models


def open_run(study: TransferStudy, options: argparse.Namespace) -> RunDirectory:
    """The study's directory, new or taken up again; one process holds it.

    Raises:
        UserMistake: it is in use, or a site of it was measured at another place: the rows would not compare.
    """
    run = open_new(study.folder, study.campaign, options.campaign, options.sets, options.sites)
    now = {name: _place(study.campaign, site) for name, site in study.sites.items()}
    before: dict[str, dict[str, str]] = {}
    for record in run.journal.events(SITES):
        before |= record["sites"]
    for name, place in now.items():
        for key, (old, new) in differences(before.get(name, place), place).items():
            run.close()
            what = f"{study.folder} has site {name} with {key}: {old}, not {new}"
            raise UserMistake(what, remedy="Choose another --out")
    run.journal.write(SITES, sites=now)
    return run


def _place(campaign: Campaign, site: Site) -> dict[str, str]:
    """Where a site's files go, and by what."""
    place = {"carrier": site.carrier, "storage_root": str(site.storage_root)}
    if site.carrier == "globus" and site.collection and campaign.globus:
        place |= {"collection": site.collection.id, "collection here": campaign.globus.collection}
    return place


def ways_to(
    study: TransferStudy, run: RunDirectory, stores: Stores, on_trouble: Callable[[str | None], None]
) -> dict[str, Carrier]:
    """Site -> the way there, for the sites of the trips; ``on_trouble`` is told what holds up a transfer, or None."""
    sites = {trip.site.name: trip.site for trip in study.trips}
    carried = {name: site for name, site in sites.items() if site.carrier == "globus"}
    ways: dict[str, Carrier] = {
        name: FolderCarrier(site, stores) for name, site in sites.items() if site.carrier != "globus"
    }
    if carried and study.campaign.globus:
        from workflows.studies.transfers.by_globus import GlobusCarrier

        here = study.campaign.globus.as_collection()
        make_client = client_for([here.id, *(site.collection.id for site in carried.values() if site.collection)])
        for name, site in carried.items():
            ways[name] = GlobusCarrier(make_client, here, site, stores, run.journal, on_trouble)
    return ways


def client_for(collections: Sequence[str]) -> Callable[[], TransferClient]:
    """What gives the one client of Globus Transfer, made when it is first asked for."""
    from workflows.globus.identity import globus_app, transfer_client

    return cache(lambda: transfer_client(globus_app(), collections))

"""Preparation of a transfer study: the campaign's sites, the files, the folder, and the carriers to the sites."""

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
        models: the requested ones, by name.
        trips: round trips that are not in the table yet.
        planned: number of round trips of the whole study.
    """

    campaign: Campaign
    folder: Path
    sites: Mapping[str, Site]
    models: Mapping[str, StudyModel]
    trips: Sequence[RoundTrip]
    planned: int

    @property
    def table(self) -> Path:
        """Return the path of the table."""
        return self.folder / TABLE


def prepare(options: argparse.Namespace) -> TransferStudy:
    """Read and check the request; write nothing.

    Raises:
        UserMistake: a mistake in the campaign or the options.
    """
    campaign = load_campaign(options.campaign, options.sets, options.sites)
    folder = (options.out or RUNS / f"{campaign.name}-transfers").resolve()
    sites = {name: _site(name, campaign, folder) for name in campaign.sites}
    check_storage(sites)
    check_collections(campaign, sites, folder)
    models = chosen_models(options.models)
    files = [StudyFile(model, file_bytes(model, options.dtype)) for model in models.values()]
    done = {row.key for row in read_rows(folder / TABLE)}
    trips = trips_of(sites.values(), files, options.repeat, done)
    return TransferStudy(campaign, folder, sites, models, trips, len(sites) * len(files) * options.repeat)


def _site(name: str, campaign: Campaign, folder: Path) -> Site:
    entry = campaign.sites[name]
    try:
        return resolve_site(name, entry.config or name, folder, entry.settings)
    except SiteConfigError as error:
        raise UserMistake(f"sites.{name}: {error}") from None


def chosen_models(names: Sequence[str]) -> dict[str, StudyModel]:
    """Return the models by name; raises UserMistake for an unknown one, for none, or for two of one name."""
    models: dict[str, StudyModel] = {}
    for text in names:
        model = model_of(text)
        if model.name in models:
            raise UserMistake(f"--models: {model.name} is given twice")
        models[model.name] = model
    if not models:
        raise UserMistake("--models: name at least one model")
    return models


def open_run(study: TransferStudy, options: argparse.Namespace) -> RunDirectory:
    """Open the study's directory, new or existing; one process holds it.

    Raises:
        UserMistake: it is in use, was started with older code, or a site has moved: its rows cannot be compared.
    """
    run = open_new(study.folder, study.campaign, options.campaign, options.sets, options.sites)
    if any("key" not in record for record in run.journal.events("transfer_submitting")):
        run.close()
        raise UserMistake(f"{study.folder} was started with older code", remedy="Choose another --out")
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
    """Return the place of a site's files, and the carrier."""
    place = {"carrier": site.carrier, "storage_root": str(site.storage_root)}
    if site.carrier == "globus" and site.collection and campaign.globus:
        place |= {"collection": site.collection.id, "collection here": campaign.globus.collection}
    return place


def carriers_to(
    study: TransferStudy, run: RunDirectory, stores: Stores, on_trouble: Callable[[str | None], None]
) -> dict[str, Carrier]:
    """Return the carriers to the trips' sites; ``on_trouble`` gets the reason why a transfer is held up, or None."""
    sites = {trip.site.name: trip.site for trip in study.trips}
    by_globus = {name: site for name, site in sites.items() if site.carrier == "globus"}
    carriers: dict[str, Carrier] = {
        name: FolderCarrier(site, stores) for name, site in sites.items() if site.carrier != "globus"
    }
    if by_globus and study.campaign.globus:
        from workflows.studies.transfers.by_globus import GlobusCarrier

        here = study.campaign.globus.as_collection()
        make_client = client_for([here.id, *(site.collection.id for site in by_globus.values() if site.collection)])
        for name, site in by_globus.items():
            carriers[name] = GlobusCarrier(make_client, here, site, stores, run.journal, on_trouble)
    return carriers


def client_for(collections: Sequence[str]) -> Callable[[], TransferClient]:
    """Return a function that makes one client of Globus Transfer at its first call."""
    from workflows.globus.identity import globus_app, transfer_client

    return cache(lambda: transfer_client(globus_app(), collections))

"""Settings that every machine takes: how work and artifacts reach a site, with and without Globus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationError

from site_configs.library.errors import SiteConfigError, first_problem
from site_configs.library.facility_endpoints import FACILITY_ENDPOINTS
from site_configs.library.queues import parse_duration
from site_configs.library.site import IN, OUT, Carrier, Collection, Endpoint, EndpointTemplate, Exchange, Route, Site

Duration = Annotated[NonNegativeInt | None, BeforeValidator(lambda value: value and parse_duration(value))]


class GlobusSettings(BaseModel):
    """Settings of any site, beside the arguments of the machine's own function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Route | None = Field(None, description="globus, or the machine's own route")
    endpoint: UUID | None = Field(None, description="Globus Compute endpoint whose blocks train")
    files_endpoint: UUID | None = Field(None, description="endpoint on a login node that reads files")
    endpoint_template: EndpointTemplate | None = Field(None, description="whose values the endpoint takes")
    silence: Duration = Field(None, description="time without liveness after which a task is submitted again")
    longest_queue: Duration = Field(None, description="the same for a task that has not started")
    collection: UUID | None = Field(None, description="Globus collection that shows in/ and out/")
    collection_folder: Path | None = Field(None, description="folder that the collection shows as /")
    mapped: bool | None = Field(None, description="the collection shows each user what their own account may read")
    exchange: Path | None = Field(None, description="folder of in/ and out/, outside storage_root")
    carrier: Carrier | None = Field(None, description="copy, shared or globus: how artifacts reach the site")


KEYS = tuple(GlobusSettings.model_fields)
ONLY_GLOBUS = ("endpoint", "files_endpoint", "endpoint_template", "silence", "longest_queue")


def split_settings(settings: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the machine's own settings, and those of ``GlobusSettings``.

    Args:
        settings: settings of a site in the campaign.
        known: settings that the machine's function takes; if ``python_env`` is not among them, it is returned with
            the second.
    """
    keys = KEYS if "python_env" in known else (*KEYS, "python_env")
    shared = {key: value for key, value in settings.items() if key in keys}
    return {key: value for key, value in settings.items() if key not in shared}, shared


def apply_settings(site: Site, settings: Mapping[str, Any], run_dir: Path, config: str) -> Site:
    """Return the site with its route, carrier, collection and endpoint set.

    Args:
        site: site that the machine's function returned.
        settings: the second part of ``split_settings``.
        run_dir: run directory of the campaign; a site of the route globus cannot store files in it.
        config: name of the machine, for errors.

    Raises:
        SiteConfigError: a value is refused, a setting is missing, or settings contradict each other.
    """
    rest = dict(settings)
    python_env = rest.pop("python_env", None)
    wanted = _validated(rest)
    site = replace(site, python_env=Path(python_env) if python_env else site.python_env)
    route = wanted.route or site.route
    if route not in (site.route, "globus"):
        raise SiteConfigError(f"route: {config} is reached by {site.route!r} or by 'globus', not by {route!r}")
    carrier = wanted.carrier or ("globus" if route == "globus" else site.carrier)
    site = replace(site, route=route, carrier=carrier, collection=_collection(site, wanted))
    if route == "globus":
        site = _through_endpoint(site, wanted, run_dir, config)
    else:
        for key in ONLY_GLOBUS:
            if getattr(wanted, key) is not None:
                raise SiteConfigError(f"{key}: only goes with route: globus; add it, or leave {key} out")
    site = replace(site, exchange=_exchange(site, wanted.exchange, run_dir))
    if carrier == "globus":
        _require_collection(site)
    return site


def _validated(settings: Mapping[str, Any]) -> GlobusSettings:
    try:
        return GlobusSettings.model_validate(dict(settings))
    except ValidationError as error:
        raise SiteConfigError(first_problem(error)) from None


def _collection(site: Site, wanted: GlobusSettings) -> Collection | None:
    """Return the collection of the settings, or that of the machine."""
    own, folder = site.collection, wanted.collection_folder
    if folder is not None and not folder.is_absolute():
        raise SiteConfigError(f"collection_folder: {folder} is relative; give the whole path at the site")
    if wanted.collection is None:
        if folder is not None and own is None:
            raise SiteConfigError(
                "collection_folder: needs collection, the UUID of the collection that shows this folder"
            )
        return replace(own, folder=folder) if own and folder else own
    if own is not None and own.id == str(wanted.collection):
        return replace(own, folder=folder or own.folder)
    if folder is None:
        raise SiteConfigError(
            "collection needs collection_folder: the folder of the site's file system that the collection shows as /"
        )
    return Collection(str(wanted.collection), folder, mapped=bool(wanted.mapped))


def _exchange(site: Site, folder: Path | None, run_dir: Path) -> Exchange | None:
    """Return the folders of what is sent and fetched: ``FOLDER/in/RUN/SITE`` and ``FOLDER/out/RUN/SITE``.

    Args:
        site: with carrier and collection.
        folder: as set; None: what a guest collection shows, or beside the storage root where the collection shows
            everything. Without Globus Transfer the folders are below the site's storage.
        run_dir: run directory of the campaign; its last part is RUN.
    """
    own = Path(run_dir.absolute().name) / site.name
    if folder is None and site.carrier == "globus" and site.collection:
        folder = exchange_beside(_without(site.storage_root, own)) if site.collection.mapped else site.collection.folder
    if folder is None:
        return None
    if not folder.is_absolute():
        raise SiteConfigError(f"exchange: {folder} is relative; give the whole path at the site")
    return Exchange(folder / IN / own, folder / OUT / own)


def exchange_beside(storage_root: Path) -> Path:
    """Return a folder for what is sent and fetched, beside the private one."""
    return storage_root.parent / f"{storage_root.name}-exchange"


def _without(path: Path, end: Path) -> Path:
    """Return a path without its last parts, if it ends with them."""
    count = len(end.parts)
    return Path(*path.parts[:-count]) if path.parts[-count:] == end.parts else path


def _through_endpoint(site: Site, wanted: GlobusSettings, run_dir: Path, config: str) -> Site:
    """Return the site behind its endpoint; its paths must be paths at the site, not on this machine."""
    if wanted.endpoint is None:
        raise SiteConfigError(
            "route: globus needs endpoint, the UUID of the site's Globus Compute endpoint."
            f" Set one up: python workflows/setup_site.py {config}"
        )
    if site.python_env is None:
        raise SiteConfigError(
            "route: globus needs python_env, the folder at the site of the environment with this project:"
            " the driver's own does not exist there"
        )
    if site.storage_root.is_relative_to(run_dir):
        raise SiteConfigError(
            "route: globus needs storage_root, a folder at the site for data and models: the run directory does not"
            " exist there"
        )
    return replace(site, endpoint=_endpoint(site, wanted, config))


def _endpoint(site: Site, wanted: GlobusSettings, config: str) -> Endpoint:
    default = Endpoint(str(wanted.endpoint))
    template = wanted.endpoint_template or default.template
    facility = FACILITY_ENDPOINTS.get(template)
    if facility and (site.block is None or site.block.scheduler != facility.scheduler):
        raise SiteConfigError(
            f"endpoint_template: {template} is for machines with {facility.scheduler}, not for {config}"
        )
    queue_s = facility.longest_queue_s if facility else default.queue_s
    return Endpoint(
        training=default.training,
        files=str(wanted.files_endpoint or ""),
        silence_s=wanted.silence or default.silence_s,
        queue_s=min(wanted.longest_queue or queue_s, queue_s) if facility else wanted.longest_queue or queue_s,
        template=template,
    )


def _require_collection(site: Site) -> None:
    if site.collection is None:
        raise SiteConfigError(
            "carrier: globus needs collection, the UUID of the Globus collection that shows in/ and out/, and"
            " collection_folder; or set carrier to copy or shared, if this machine sees the site's storage"
        )
    try:
        site.collection.path_of(site.incoming)
    except SiteConfigError as error:
        raise SiteConfigError(f"exchange: {error}. Set exchange or collection_folder to fit") from None
    if site.collection.shares(site.storage_root):
        raise SiteConfigError(
            f"storage_root: {site.storage_root} and {site.collection.folder}, which the collection shares, overlap:"
            " the driver could read the site's records. Set storage_root to a folder beside it; or mapped: true if this"
            " is no guest collection"
        )

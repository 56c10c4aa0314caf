"""The settings of a site that every machine's file shares: how work and artifacts reach it through Globus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt

from site_configs.library.errors import SiteConfigError
from site_configs.library.queues import parse_walltime
from site_configs.library.site import Carrier, Collection, Endpoint, Route, Site

Duration = Annotated[NonNegativeInt | None, BeforeValidator(lambda value: value and parse_walltime(value))]


class GlobusSettings(BaseModel):
    """What a campaign may say about any site, beyond the arguments of the machine's own function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Route | None = Field(None, description="globus, or the machine's own")
    endpoint: UUID | None = Field(None, description="the Globus Compute endpoint whose blocks train")
    files_endpoint: UUID | None = Field(None, description="an endpoint on a login node, which looks at files")
    silence: Duration = Field(None, description="without a sign of life for so long a task is asked for again")
    longest_queue: Duration = Field(None, description="the same for a task that has not begun")
    collection: UUID | None = Field(None, description="the Globus collection that holds storage_root")
    collection_folder: Path | None = Field(None, description="the folder that the collection shows as /")
    carrier: Carrier | None = Field(None, description="copy, shared or globus: how artifacts reach the site")


KEYS = tuple(GlobusSettings.model_fields)
ONLY_GLOBUS = ("endpoint", "files_endpoint", "silence", "longest_queue")


def split_settings(settings: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine's own settings, and those that are taken here.

    Args:
        settings: of a site in the campaign.
        known: the arguments of the machine's function. ``python_env`` is taken here where they have none.
    """
    here = (*KEYS, *(() if "python_env" in known else ("python_env",)))
    ours = {key: value for key, value in settings.items() if key in here}
    return {key: value for key, value in settings.items() if key not in ours}, ours


def apply_settings(site: Site, settings: Mapping[str, Any], run_dir: Path, config: str) -> Site:
    """The site as it is reached by these settings.

    Args:
        site: as the machine's function made it.
        settings: those that ``split_settings`` took.
        run_dir: of the campaign; where it lies, no site of the route globus stores.
        config: the machine, for errors.

    Raises:
        SiteConfigError: a value that is none, a setting that is missing, or settings that do not go together.
    """
    rest = dict(settings)
    python_env = rest.pop("python_env", None)
    wanted = _checked(rest)
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
    if carrier == "globus":
        _require_collection(site)
    return site


def _checked(settings: Mapping[str, Any]) -> GlobusSettings:
    from pydantic import ValidationError

    try:
        return GlobusSettings.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"].startswith("uuid"):
            what = f"{first['input']!r} is no UUID such as 4b116d3c-1703-4f8f-9f6f-39921e5864df"
        else:
            what = first["msg"].removeprefix("Value error, ")
        raise SiteConfigError(f"{first['loc'][0]}: {what}") from None


def _collection(site: Site, wanted: GlobusSettings) -> Collection | None:
    """The collection of the settings, or that of the machine."""
    own, folder = site.collection, wanted.collection_folder
    if folder is not None and not folder.is_absolute():
        raise SiteConfigError(f"collection_folder: {folder} is relative; give the whole path at the site")
    if wanted.collection is None:
        if folder is not None and own is None:
            raise SiteConfigError("collection_folder: goes with collection, the UUID of what shows this folder")
        return replace(own, folder=folder) if own and folder else own
    if own is not None and own.id == str(wanted.collection):
        return replace(own, folder=folder or own.folder)
    if folder is None:
        raise SiteConfigError(
            "collection needs collection_folder: the folder of the site's file system that the collection shows as /"
        )
    return Collection(str(wanted.collection), folder)


def _through_endpoint(site: Site, wanted: GlobusSettings, run_dir: Path, config: str) -> Site:
    """The site behind its endpoint; it finds nothing that only this machine has."""
    if wanted.endpoint is None:
        raise SiteConfigError(
            "route: globus needs endpoint, the UUID of the site's Globus Compute endpoint."
            f" Set one up: python workflows/setup_site.py {config}"
        )
    if site.python_env is None:
        raise SiteConfigError(
            "route: globus needs python_env, the folder at the site of the environment with this project:"
            " the driver's own is not there"
        )
    if site.storage_root.is_relative_to(run_dir):
        raise SiteConfigError(
            "route: globus needs storage_root, a folder at the site for data and models: the run directory is not there"
        )
    usual = Endpoint(str(wanted.endpoint))
    endpoint = Endpoint(
        training=usual.training,
        files=str(wanted.files_endpoint or ""),
        silence_s=wanted.silence or usual.silence_s,
        queue_s=wanted.longest_queue or usual.queue_s,
    )
    return replace(site, endpoint=endpoint)


def _require_collection(site: Site) -> None:
    if site.collection is None:
        raise SiteConfigError(
            "carrier: globus needs collection, the UUID of the Globus collection that holds storage_root, and"
            " collection_folder; or set carrier to copy or shared, if this machine sees the site's storage"
        )
    try:
        site.collection.path_of(site.storage_root)
    except SiteConfigError as error:
        raise SiteConfigError(f"storage_root: {error}. Set storage_root or collection_folder to fit") from None

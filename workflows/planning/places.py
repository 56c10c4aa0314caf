"""Places of the server's own work: where first model, aggregation and final model are computed, and where evaluation.

A place is the driver's host, the worker of a site of the campaign, or a block of its own. Staging stays on the driver's
host: it needs to see every site's storage, and must not wait behind a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from site_configs.library.resolve import SiteConfigError, resolve_site, takes
from site_configs.library.site import Device, Site
from site_configs.local import site as local_site
from workflows.planning.labels import EVALUATOR, KEYS, SERVER, SERVER_BLOCK

if TYPE_CHECKING:
    from workflows.planning.campaign import Campaign, PlaceEntry

HERE = "on this machine"


@dataclass(frozen=True)
class ServerPlace:
    """Place of a part of the server's work.

    Attributes:
        role: ``SERVER`` or ``EVALUATOR``; the name that its tasks have in the journal.
        site: the machine; its name is the label of the executor.
        shared: True for a site of the campaign, whose worker also trains.
    """

    role: str
    site: Site
    shared: bool

    @property
    def label(self) -> str:
        """Label of the executor."""
        return self.site.name

    @property
    def here(self) -> bool:
        """True for processes on the driver's host."""
        return self.site.route == "local"

    @property
    def where(self) -> str:
        """Where it is, for people."""
        if self.shared:
            return f"at {self.label}"
        return HERE if self.here else f"in its own block, {self.site.machine}"

    def __str__(self) -> str:
        return f"{KEYS[self.role].split('.')[0]} ({self.where})"


def server_places(campaign: Campaign, sites: Mapping[str, Site], run_dir: Path) -> tuple[ServerPlace, ServerPlace]:
    """Return the places of the server's computations and of evaluation.

    Args:
        campaign: as read.
        sites: the campaign's, resolved.
        run_dir: the run directory, which every place must see.

    Raises:
        UserMistake: there is no such site, it cannot see the run directory, or its settings are refused.
    """
    server, evaluation = campaign.server, campaign.evaluation
    threads = 1 if evaluation.threads == "auto" else evaluation.threads
    device: Device = "cpu" if evaluation.device == "auto" else evaluation.device
    here = local_site(SERVER, run_dir), local_site(EVALUATOR, run_dir, threads=threads, device=device)
    return (
        _place(SERVER, SERVER_BLOCK, server.site, sites, run_dir) or ServerPlace(SERVER, here[0], shared=False),
        _place(EVALUATOR, EVALUATOR, evaluation.site, sites, run_dir) or ServerPlace(EVALUATOR, here[1], shared=False),
    )


def _place(
    role: str, label: str, wanted: str | PlaceEntry | None, sites: Mapping[str, Site], run_dir: Path
) -> ServerPlace | None:
    """Return the place that a campaign names; None: the driver's host."""
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return ServerPlace(role, _seen(KEYS[role], sites[wanted]), shared=True)
    return ServerPlace(role, _seen(KEYS[role], own_block(label, wanted.config, wanted.settings, run_dir)), shared=False)


def own_block(label: str, config: str, settings: Mapping[str, Any], run_dir: Path) -> Site:
    """Return the machine of a block of its own; it needs no storage beside the run directory.

    Raises:
        UserMistake: the machine refuses the settings, or its nodes do not see the run directory.
    """
    key, given = KEYS[label], dict(settings)
    try:
        if "storage_root" not in given and takes(config, "storage_root"):
            given["storage_root"] = run_dir.parent
        return resolve_site(label, config, run_dir, given)
    except SiteConfigError as error:
        text = str(error).replace(f"sites.{label}", key)
        if "storage_root" not in settings:
            text = text.replace(f"storage_root: {run_dir.parent}", f"the run directory {run_dir}")
        raise UserMistake(f"{key}: {text}") from None


def _seen(key: str, site: Site) -> Site:
    """Return a site whose workers see the run directory.

    Raises:
        UserMistake: it is reached through an endpoint, which sees the facility's own storage only.
    """
    if site.route == "globus":
        raise UserMistake(
            f"{key}: {site.name} is reached through Globus Compute and does not see the run directory on this machine",
            remedy="Name a site with the route batch or local, or give this work a block of its own"
            f" ({key}: {{config: MACHINE, ...}})",
        )
    return site

"""Make the paths of a campaign absolute.

A batch job starts in another folder than the driver (PBS: in the home folder), and a resume may be typed anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from apps.models.sources import PACKAGED, TINY
from data.tasks import EMBEDDED
from workflows.planning.campaign import Campaign, PlacedSection, PlaceEntry, SiteEntry

Placed = TypeVar("Placed", bound=PlacedSection)


def with_absolute_paths(campaign: Campaign) -> Campaign:
    """Return a campaign whose paths on this machine do not depend on the present folder.

    The records and the model of a site behind Globus lie at that site: their paths stay as they are written.
    """
    model, data = campaign.model, campaign.data
    return campaign.model_copy(
        update={
            "model": model.model_copy(update={"source": absolute_model(model.source)}),
            "data": data.model_copy(update={"source": absolute_records(data.source)}),
            "sites": {name: _with_absolute_paths(entry) for name, entry in campaign.sites.items()},
            "server": _with_absolute_place(campaign.server),
            "evaluation": _with_absolute_place(campaign.evaluation),
        }
    )


def _with_absolute_paths(entry: SiteEntry) -> SiteEntry:
    if entry.settings.get("route") == "globus":
        return entry
    update: dict[str, Any] = {}
    if entry.config is not None:
        update["config"] = absolute_config(entry.config)
    if entry.data is not None:
        update["data"] = absolute_records(entry.data)
    if entry.model is not None:
        update["model"] = absolute_model(entry.model)
    return entry.model_copy(update=update)


def _with_absolute_place(section: Placed) -> Placed:
    if not isinstance(section.site, PlaceEntry):
        return section
    site = section.site.model_copy(update={"config": absolute_config(section.site.config)})
    return section.model_copy(update={"site": site})


def absolute_config(config: str) -> str:
    """Return the absolute path of a user's own machine file; the name of a machine stays."""
    return _absolute(config) if config.endswith(".py") else config


def absolute_records(source: str) -> str:
    """Return the absolute path of a source of records; ``embedded`` stays."""
    return source if source == EMBEDDED else _absolute(source)


def absolute_model(source: str) -> str:
    """Return the absolute path of a model's folder; the name of a packaged, tiny or hub model stays."""
    if source == TINY or source in PACKAGED:
        return source
    is_path = source.startswith((".", "/", "~")) or Path(source).is_dir()
    return _absolute(source) if is_path else source


def _absolute(path: str) -> str:
    """Return the path from the root; links stay, since a site may see the folder under this name only."""
    return os.path.normpath(Path(path).expanduser().absolute())

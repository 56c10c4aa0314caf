"""The policy file that ``setup_site.py`` writes for the operator of a site, filled in as far as its settings go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from site_configs.library.site import Site
from workflows.globus.setup.checklist import needs_collection, shared_folder
from workflows.globus.setup.render import render
from workflows.globus.setup.template import records_folder

VALID = timedelta(days=365)


@dataclass(frozen=True)
class Offered:
    """What a campaign names for a site; None: it names nothing.

    Attributes:
        data: folder of records, or a set that comes with the project.
        model: folder of the base model, or one that comes with the project.
        driver: id of the key of its driver; None: any driver is accepted.
    """

    data: str | None = None
    model: str | None = None
    driver: str | None = None


def policy_text(site: Site, settings: Mapping[str, Any], offered: Offered, today: date | None = None) -> str:
    """Return the content of ``crossfed-site.yaml``.

    Args:
        site: the facility.
        settings: of the site in the campaign, as far as they are known.
        offered: records, models and driver.
        today: first day; default: this one, in UTC.
    """
    assert site.python_env is not None  # resolved sites have one
    root = Path(str(settings["storage_root"]))
    return render(
        "crossfed-site.yaml.j2",
        site=site,
        python=site.python_env / "bin" / "python",
        root=root,
        exchange=shared_folder(settings) if needs_collection(settings) else "none",
        data=[offered.data or str(records_folder(root))],
        models=[offered.model] if offered.model else [],
        launch=json.dumps(list(site.ranks.launch)),
        driver=offered.driver,
        not_after=(today or datetime.now(UTC).date()) + VALID,
    )

"""Check, at the site, that what is the site's alone lies outside everything that others reach."""

from __future__ import annotations

import sys
from pathlib import Path

from apps.base.errors import UserMistake
from apps.training.task import SiteWork
from data.tasks import EMBEDDED

PROJECT = Path(__file__).resolve().parents[2]


def require_private(work: SiteWork) -> None:
    """Compare the folders that this process reads and writes, with links followed, with the one that others reach.

    Args:
        work: the site's settings.

    Raises:
        UserMistake: they overlap, or updates would be written elsewhere than where they are fetched.
    """
    if not work["shared"]:
        return
    shared, out = Path(work["shared"]).resolve(), Path(work["out"]).resolve()
    for what, path in private_paths(work).items():
        own = path.resolve()
        if own.is_relative_to(shared) or shared.is_relative_to(own):
            raise UserMistake(
                f"the site's {what} ({own}) and {shared}, which its collection shows to the driver, overlap",
                remedy=f"Put it beside {shared}",
            )
    if not out.is_relative_to(shared):
        raise UserMistake(f"updates are written to {out}, which is not below {shared}", remedy="Remove the link")


def private_paths(work: SiteWork) -> dict[str, Path]:
    """Return the folders of records, state and code of a site, by what they are."""
    paths = {"storage_root": Path(work["root"]), "Python": Path(sys.prefix), "project": PROJECT}
    if work["data"]["source"] not in ("", EMBEDDED):
        paths["data"] = Path(work["data"]["source"]).expanduser()
    model = Path(work["model"]["source"]).expanduser()
    return paths | ({"model": model} if model.is_absolute() else {})

"""Checks of how sites are reached: one host cannot submit jobs to two machines, nor see the files of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from apps.models.sources import PACKAGED, TINY
from data.tasks import EMBEDDED
from workflows.planning.labels import key_of
from workflows.planning.plan import Plan


def reach_mistakes(plan: Plan) -> list[str]:
    """Return a line for each thing in a campaign that no host could carry out."""
    return [*_two_hosts(plan), *(line for name in plan.sites for line in _paths_elsewhere(plan, name))]


def _two_hosts(plan: Plan) -> Iterator[str]:
    """Yield a line if the batch jobs of a campaign would have to be submitted on two machines' login nodes."""
    owner: dict[str, str] = {}
    for label, site in plan.machines.items():
        if site.route == "batch" and site.login_host:
            owner.setdefault(site.login_host, label)
    if len(owner) > 1:
        (first, one), *others = owner.items()
        keys = ", ".join(f"{key_of(label)}.route=globus" for _, label in others)
        yield (
            f"jobs of {' and '.join(owner)} cannot be submitted from one host: start on a login node of {first}"
            f" ({key_of(one)}), and reach the others through Globus: {keys} (docs/globus.md)"
        )


def _paths_elsewhere(plan: Plan, name: str) -> Iterator[str]:
    """Yield a line for each path of a site behind Globus that does not say where it is at the site."""
    site, entry, campaign = plan.sites[name], plan.campaign.sites[name], plan.campaign
    if site.route != "globus":
        return
    if entry.data is None and campaign.data.source != EMBEDDED:
        yield (
            f"sites.{name}.data: missing; data.source is a path of this machine, and {site.machine} keeps its records"
            f" itself: sites.{name}.data=/PATH/AT/THE/SITE"
        )
    if entry.model is None and campaign.model.source.startswith("/"):
        yield (
            f"sites.{name}.model: missing; model.source is a folder of this machine, and {site.machine} has a copy of"
            f" its own: sites.{name}.model=/PATH/AT/THE/SITE"
        )
    for key, path in (("data", entry.data), ("model", entry.model)):
        if path and _is_relative(key, path):
            yield f"sites.{name}.{key}: {path} is relative; jobs there start in another folder: write the whole path"


def _is_relative(key: str, path: str) -> bool:
    if key == "data":
        return path != EMBEDDED and not path.startswith("~") and not Path(path).is_absolute()
    return path not in (TINY, *PACKAGED) and path.startswith(".")

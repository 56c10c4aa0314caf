"""What the driver's host must have before a run starts."""

from __future__ import annotations

from pathlib import Path

from apps.base.errors import UserMistake
from data.tasks import EMBEDDED
from site_configs.library.site import Site
from workflows.planning.plan import Plan
from workflows.runtime.executors import driver_address

SPLITS = ("train", "dev", "test")  # of the embedded data


def require_all(plan: Plan, source: Path) -> None:
    """Raises UserMistake if this machine lacks what the campaign needs, or nobody is logged in where it has to be."""
    for what in missing_here(plan):
        raise UserMistake(f"{source}: {what}")
    if any("globus" in (site.route, site.carrier) for site in plan.sites.values()):
        from workflows.checks.login_status import login_problem

        problem = login_problem()
        if problem:
            raise UserMistake(problem)


def missing_here(plan: Plan) -> list[str]:
    """What the campaign needs on this machine and does not find; a run is not started with any of it missing."""
    campaign, missing = plan.campaign, []
    sources = {"data.source": campaign.data.source}
    here = {name: entry for name, entry in campaign.sites.items() if plan.sites[name].route != "globus"}
    sources |= {f"sites.{name}.data": entry.data for name, entry in here.items() if entry.data}
    for key, source in sources.items():
        if source != EMBEDDED and not Path(source).expanduser().exists():
            missing.append(f"{key}: {source} does not exist")
    calling = [site for site in plan.sites.values() if site.route != "globus"]
    missing += [problem for site in calling if (problem := address_problem(site))]
    if campaign.data.source == EMBEDDED and campaign.evaluation.split not in SPLITS:
        missing.append(f"evaluation.split: the embedded data has the splits {', '.join(SPLITS)}")
    return missing


def address_problem(site: Site) -> str | None:
    """Why a site's workers could not call this host back, or None."""
    try:
        driver_address(site)
    except UserMistake as error:
        return str(error)
    return None

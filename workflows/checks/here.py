"""Checks of the driver's host: data, network interfaces and logins that a run needs."""

from __future__ import annotations

import re
from pathlib import Path

from apps.base.errors import UserMistake
from data.definition import verify_embedded
from data.records import canonical_split
from data.tasks import EMBEDDED
from site_configs.library.schedulers import absent_commands
from site_configs.library.site import Site
from workflows.checks.model import missing_model
from workflows.checks.places import place_problems
from workflows.checks.reach import reach_mistakes
from workflows.checks.records import require_records
from workflows.planning.labels import KEYS, key_of
from workflows.planning.plan import Plan
from workflows.runtime.executors import driver_address
from workflows.runtime.limits import files_problem


def require_all(plan: Plan, source: Path) -> None:
    """Check that this machine has what the campaign needs, and that the user is logged in where that is needed.

    Args:
        plan: the checked campaign.
        source: its file, for errors.

    Raises:
        UserMistake: what is missing, or the first record that cannot be read.
    """
    problems = [*reach_mistakes(plan), *missing_here(plan), *place_problems(plan)]
    if problems:
        raise UserMistake("\n".join(f"{source}: {problem}" for problem in problems))
    try:
        require_records(plan)
    except UserMistake as error:
        raise UserMistake(f"{source}: {error.what}", remedy=error.remedy) from None
    if any("globus" in (site.route, site.carrier) for site in plan.sites.values()):
        from workflows.checks.login_status import login_problem  # loads the Globus SDK

        login = login_problem()
        if login:
            raise UserMistake(login)


def missing_here(plan: Plan) -> list[str]:
    """Return a line for everything that the campaign needs and this machine lacks; such a run is not started."""
    here = [site for site in plan.sites.values() if site.route != "globus"]
    machines = [site for site in plan.machines.values() if site.route != "globus"]
    own = [files_problem(plan), path_problem(plan), missing_model(plan)]
    return [*_data_problems(plan, here), *filter(None, [*map(reach_problem, machines), *own])]


def _data_problems(plan: Plan, here: list[Site]) -> list[str]:
    data, split = plan.campaign.data, plan.campaign.evaluation.split
    sources = {"data.source": data.source}
    sources |= {
        f"sites.{site.name}.data": entry.data for site in here if (entry := plan.campaign.sites[site.name]).data
    }
    problems = [
        f"{key}: {source} does not exist"
        for key, source in sources.items()
        if source != EMBEDDED and not Path(source).expanduser().exists()
    ]
    try:
        canonical_split(split, data.source)
    except ValueError as error:
        problems.append(f"evaluation.split: {error}")
    if EMBEDDED in sources.values():
        try:
            verify_embedded()
        except ValueError as error:
            problems.append(f"data.source: {error}")
    return problems


def reach_problem(site: Site) -> str | None:
    """Return why a site's jobs cannot be submitted from this host, or its workers could not connect to it, or None."""
    return command_problem(site) or address_problem(site)


def command_problem(site: Site) -> str | None:
    """Return a message if the commands of a site's scheduler are not on this host, or None."""
    block = site.own_block
    missing = absent_commands(block.scheduler, block.command_environment) if block else []
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"{key_of(site.name)}: {', '.join(missing)} {verb} not on PATH: start on a login node of {site.machine}" + (
        f", or reach it through Globus (sites.{site.name}.route=globus)" if site.name not in KEYS else ""
    )


def address_problem(site: Site) -> str | None:
    """Return why a site's workers could not connect to this host, or None."""
    try:
        driver_address(site)
    except UserMistake as error:
        return str(error)
    return None


def path_problem(plan: Plan) -> str | None:
    """Return why batch scripts could not name the run directory, or None.

    Parsl writes the paths of its files into shell lines and directives of a job's script as they are. The workers of
    local sites have no such script.
    """
    folder = Path(plan.server_work["store"]).parent
    odd = sorted(set(re.sub(r"[\w@+=,./-]", "", str(folder))))
    if not odd or not any(site.own_block for site in plan.machines.values()):
        return None
    shown = " ".join(repr(character) for character in odd)
    return (
        f"the path of the run directory, {folder}, has {shown}, which batch scripts cannot name."
        " Start in a folder whose path has letters, digits and @ + = , . _ - only"
    )

"""Limits of the driver's process: the open files that a campaign needs.

Measured with Parsl 2026.10.26: a batch site costs the driver 24 descriptors, a local one 3; libzmq ends the process
without a word when there is none left.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from apps.base.errors import UserMistake
from workflows.console.units import plural

if TYPE_CHECKING:
    from workflows.planning.plan import Plan

OWN_FILES, BATCH_FILES, OTHER_FILES = 150, 32, 12  # with some to spare
MOST_FILES = 65_536  # programs that close all descriptors one by one take long with more


def files_needed(plan: Plan) -> int:
    """Return the number of open files that a campaign may need in the driver."""
    return OWN_FILES + sum(BATCH_FILES if site.own_block else OTHER_FILES for site in plan.machines.values())


def files_problem(plan: Plan) -> str | None:
    """Return why this process may not open enough files for a campaign, or None."""
    needed, limit = files_needed(plan), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY or needed <= limit:
        return None
    return (
        f"{plural(len(plan.sites), 'site')} may need {needed:,} open files in the driver and this machine allows"
        f" {limit:,} (ulimit -Hn). Leave sites out, or ask for a higher limit"
    )


def provide_files(plan: Plan) -> None:
    """Raise the limit of open files as far as this process may.

    Raises:
        UserMistake: that is not enough for the campaign.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, max(MOST_FILES, files_needed(plan)))
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    problem = files_problem(plan)
    if problem:
        raise UserMistake(problem)

"""Which tasks each site trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.base.errors import UserMistake
from data.partition import deal_tasks
from data.tasks import expand_tasks, families_of
from workflows.planning.campaign import Campaign, SiteEntry

Tasks = tuple[str, ...]


def share_tasks(campaign: Campaign, all_tasks: Tasks) -> dict[str, Tasks]:
    """Return the tasks of each site.

    Args:
        campaign: with its sites.
        all_tasks: ids of the campaign's tasks.

    Raises:
        UserMistake: an unknown task, a task of the common source at two sites, or a site without any.
    """
    named = {
        name: expanded(f"sites.{name}.tasks", entry.tasks, entry.data or campaign.data.source) if entry.tasks else None
        for name, entry in campaign.sites.items()
    }
    _refuse_two_owners({name: tasks for name, tasks in named.items() if tasks and campaign.sites[name].data is None})
    try:
        return deal_tasks(named, all_tasks)
    except ValueError as error:
        raise UserMistake(f"sites.*.tasks: {error}") from None


def expanded(key: str, names: list[str] | None, source: str) -> Tasks:
    """Return the task ids of a list of tasks and families under a key; None: all tasks of the source."""
    try:
        return expand_tasks(names or families_of(source), source)
    except ValueError as error:
        raise UserMistake(f"{key}: {error}") from None


def _refuse_two_owners(named: Mapping[str, Tasks]) -> None:
    owner: dict[str, str] = {}
    for name, tasks in named.items():
        for task in tasks:
            if owner.setdefault(task, name) != name:
                raise UserMistake(f"sites.{name}.tasks: {task} already belongs to {owner[task]}; sites share no data")


def without_absent_tasks(campaign: Campaign, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chosen sites' entries; what the campaign gives to a site that was left out goes to none of them.

    Args:
        campaign: with all its sites.
        chosen: entries of the sites to use, as in a campaign file.

    Raises:
        UserMistake: an unknown task, or a site that is left without any.
    """
    entries = {name: SiteEntry.model_validate(entry) for name, entry in chosen.items()}
    absent = {name: entry for name, entry in campaign.sites.items() if name not in chosen and entry.tasks}
    if not absent or all(entry.tasks for entry in entries.values()):
        return dict(chosen)
    source = campaign.data.source
    taken = {task for name, entry in absent.items() for task in expanded(f"sites.{name}.tasks", entry.tasks, source)}
    left = tuple(task for task in expanded("data.tasks", campaign.data.tasks, source) if task not in taken)
    try:
        shares = deal_tasks({name: entry.tasks for name, entry in entries.items()}, left)
    except ValueError as error:
        raise UserMistake(f"--sites: {error}") from None
    return {name: {**entry, "tasks": list(shares[name])} for name, entry in chosen.items()}

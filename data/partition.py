"""Partition of data over sites: whole tasks by name, or single records by a Dirichlet draw."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from data.names import did_you_mean
from data.tasks import FAMILIES, Record, family_of, in_canonical_order


def deal_tasks(sites: Mapping[str, Sequence[str] | None], available: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Assign tasks to sites.

    Sites that name tasks or families get them (two may name the same); the remaining families are assigned to the
    other sites in turn, in the order of the sites. A family of which some tasks are taken is assigned without them. If
    fewer families than sites remain, single tasks are assigned instead.

    Args:
        sites: site -> names of tasks or families, None for a share of the rest.
        available: task ids of the source.

    Returns:
        Site -> task ids in canonical order.

    Raises:
        ValueError: a name is not available, or a site would have no data.
    """
    families = _families(available)
    assigned = {site: _named(site, names, families) for site, names in sites.items() if names}
    taken = {task for tasks in assigned.values() for task in tasks}
    unassigned = [site for site in sites if site not in assigned]
    left = [tuple(t for t in tasks if t not in taken) for tasks in families.values()]
    pieces = [tasks for tasks in left if tasks]
    if len(pieces) < len(unassigned):
        pieces = [(task,) for tasks in pieces for task in tasks]
    if len(pieces) < len(unassigned):
        without = ", ".join(unassigned[len(pieces) :])
        raise ValueError(f"no task is left for the sites {without}: name theirs, or use fewer sites")
    for index, site in enumerate(unassigned):
        assigned[site] = in_canonical_order(task for piece in pieces[index :: len(unassigned)] for task in piece)
    return {site: assigned[site] for site in sites}


def dirichlet_split(
    records: Sequence[Record], sites: Sequence[str], alpha: float, seed: int
) -> dict[str, list[Record]]:
    """Assign each record to exactly one site; each task is divided in proportions drawn from Dirichlet(alpha).

    Small alpha: a task is mostly at one site; large alpha: all sites have similar data (Hsu et al. 2019, arXiv
    1909.06335, with the task as label). The order within a site is that of `records`. A site may get no record.

    Raises:
        ValueError: no sites, two sites of one name, or an alpha that is not positive.
    """
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"dirichlet_split needs sites with different names, not {list(sites)}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a positive number, not {alpha}")
    by_task: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        by_task.setdefault(record["task"], []).append(index)
    owner: dict[int, str] = {}
    for task, indices in by_task.items():
        # A generator per task: adding a task does not move the records of the others.
        draw = random.Random(f"{seed}/{task}")
        draw.shuffle(indices)
        start = 0
        for site, end in zip(sites, _cuts(_dirichlet(draw, len(sites), alpha), len(indices)), strict=True):
            owner.update(dict.fromkeys(indices[start:end], site))
            start = end
    return {site: [r for i, r in enumerate(records) if owner[i] == site] for site in sites}


def _families(available: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the available tasks by family, in canonical order; a task without family is a family of its own."""
    grouped: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for task in in_canonical_order(available):
        grouped.setdefault(family_of(task) or task, []).append(task)
    return {family: tuple(tasks) for family, tasks in grouped.items() if tasks}


def _named(site: str, names: Sequence[str], families: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    known = {task for tasks in families.values() for task in tasks}
    chosen: list[str] = []
    for name in names:
        if name not in families and name not in known:
            raise ValueError(
                f"site {site!r} names the task {name!r}, which is not in the data"
                + did_you_mean(name, (*families, *in_canonical_order(known)))
            )
        chosen.extend(families.get(name, (name,)))
    return in_canonical_order(chosen)


def _dirichlet(draw: random.Random, size: int, alpha: float) -> list[float]:
    """Return proportions that sum to 1: normalised gamma draws."""
    weights = [draw.gammavariate(alpha, 1.0) for _ in range(size)]
    total = sum(weights)
    if total <= 0.0:  # with a tiny alpha every draw underflows: in the limit one site gets everything
        chosen = draw.randrange(size)
        return [float(i == chosen) for i in range(size)]
    return [w / total for w in weights]


def _cuts(proportions: Sequence[float], number: int) -> list[int]:
    """Return the ends of consecutive slices of `number` items in these proportions; the last end is `number`."""
    cumulative, ends = 0.0, []
    for proportion in proportions:
        cumulative += proportion
        ends.append(min(number, round(cumulative * number)))
    ends[-1] = number
    return ends

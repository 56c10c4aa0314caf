"""Checks of the records on this machine: that every task has some, that they can be read, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apps.base.errors import UserMistake
from data.records import count_records
from data.tasks import EMBEDDED
from workflows.console.units import plural
from workflows.planning.plan import Plan

MOST = 10_000  # records of a task that a check reads; it says "or more" beyond that


@dataclass(frozen=True)
class Shelf:
    """Records that a campaign reads on this machine."""

    key: str  # of the campaign, for errors
    label: str
    source: str
    split: str
    tasks: tuple[str, ...]

    @property
    def exists(self) -> bool:
        """Return True if the source is on this machine."""
        return self.source == EMBEDDED or Path(self.source).expanduser().exists()

    def count(self) -> dict[str, int]:
        """Return task -> number of records, `MOST` at most.

        Raises:
            UserMistake: a task has none, or a record is broken; names the key.
        """
        try:
            return count_records(self.source, self.split, self.tasks, MOST)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise UserMistake(f"{self.key}: {error}") from None


def shelves_here(plan: Plan) -> list[Shelf]:
    """Return what is read on this machine: the records of local and batch sites, and the test set."""
    campaign = plan.campaign
    found = []
    for name, site in plan.sites.items():
        if site.route != "globus":
            own = campaign.sites[name].data
            key = f"sites.{name}.data" if own else "data.source"
            found.append(Shelf(key, name, own or campaign.data.source, "train", plan.tasks[name]))
    test = plan.evaluation_work["data"]
    return [*found, Shelf("data.source", "test set", test["source"], campaign.evaluation.split, tuple(test["tasks"]))]


def count_lines(plan: Plan) -> list[tuple[str, str]]:
    """Return pairs of key and text about the records that are on this machine.

    Raises:
        UserMistake: a task has none, or a record is broken.
    """
    return [("records", f"{s.label}: {_text(s.count(), plan, s)}") for s in shelves_here(plan) if s.exists]


def _text(counts: dict[str, int], plan: Plan, shelf: Shelf) -> str:
    more = " or more" if max(counts.values()) >= MOST else ""
    text = f"{sum(counts.values()):,}{more} in split {shelf.split}, {_range(counts)} of a task"
    asked = plan.campaign.evaluation.per_task if shelf.label == "test set" else None
    fewest = min(counts.values())
    if asked is None or fewest >= asked:
        return text
    short = sum(count < asked for count in counts.values())
    return f"{text}; evaluation.per_task asks for {asked:,}: {plural(short, 'task')} of {len(counts)} with fewer"


def _range(counts: dict[str, int]) -> str:
    fewest, most = min(counts.values()), max(counts.values())
    return f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"


def require_records(plan: Plan) -> None:
    """Check that every task has records that can be read, where they are on this machine.

    Raises:
        UserMistake: a task has none, or a record is broken.
    """
    for shelf in shelves_here(plan):
        if shelf.exists:
            shelf.count()

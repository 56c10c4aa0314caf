"""What an earlier driver has told its strategy, and the campaign's clock over all its drivers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workflows.records.event_log import EventLog, down_spans
from workflows.records.journal import Journal, Record
from workflows.strategies.base import (
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    SiteFacts,
    SiteFailed,
    TimerFired,
    UpdateArrived,
)

EVENTS = {
    kind.__name__: kind for kind in (CampaignStarted, BlockStarted, BlockEnded, UpdateArrived, SiteFailed, TimerFired)
}


def decode_event(kind: str, fields: dict[str, Any]) -> Event:
    """The event that ``asdict`` made plain."""
    if kind == "CampaignStarted":
        fields = {**fields, "sites": tuple(SiteFacts(**facts) for facts in fields["sites"])}
    return EVENTS[kind](**fields)


def recorded_events(journal: Journal) -> list[Record]:
    """The records of what the strategy was told, but for what a driver has given up on, so that it is asked again."""
    given_up = [(r["since"], r["seq"]) for r in journal.events("failures_forgotten") if r["since"]]
    told = journal.events("strategy_event")
    return [r for r in told if not any(since <= r["seq"] < end for since, end in given_up)]


def forget_failures(journal: Journal) -> None:
    """Note that the next driver goes on from before the first failure since the newest model.

    What is forgotten is an end of the story, never a part of its middle: what is left has happened just so. Updates
    in it arrive again, and nobody trains for them.
    """
    newest = max((r["seq"] for r in journal.events("aggregated")), default=0)
    failed = [r for r in recorded_events(journal) if r["kind"] == "SiteFailed" and r["seq"] > newest]
    tasks = [r["fields"]["task"] for r in failed]
    journal.write("failures_forgotten", tasks=tasks, since=failed[0]["seq"] if failed else None)


class Clock:
    """Seconds since the campaign began. It stands still while no driver is there.

    A timer that was due in the meantime fires when its seconds have been lived through, and a site does not look slow
    because nobody was there to take its update.
    """

    def __init__(self, journal: Journal, opened: float, clock: Callable[[], float] = time.time) -> None:
        self.opened, self.clock = opened, clock
        self.absences = down_spans(EventLog(tuple(journal.records)))
        self.absent_s = 0.0
        self.as_of(clock())

    def as_of(self, moment: float) -> None:
        """From here on only absences before this UNIX time count: what is replayed reckons as it did then."""
        self.absent_s = sum(end - start for start, end in self.absences if end <= moment)

    def now(self) -> float:
        return self.clock() - self.opened - self.absent_s

    def unix(self, time_s: float) -> float:
        """The UNIX time of a moment of the campaign, if no driver is missing until then."""
        return self.opened + self.absent_s + time_s

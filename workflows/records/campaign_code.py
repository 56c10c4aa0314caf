"""Hash of the campaign code: all code that must be the same when a run is resumed.

A resume replays the journal: it gives the recorded events to the strategy again and submits the same dataflow again.
With other code of the strategies, the dataflow or the plan it would compute other models than those recorded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from apps.base.own_packages import ROOT
from apps.base.versions import source_hash, worker_files

ROOMS = ("workflows/strategies", "workflows/dataflow", "workflows/planning")
FILES = (
    "workflows/fl_round.py",  # its loop gives the events to the strategy
    "workflows/records/journal.py",
    "workflows/records/driver_times.py",
    "workflows/records/event_log.py",
    "workflows/records/spans.py",
    "workflows/records/changes.py",
    "workflows/runtime/memoizer.py",  # finds finished tasks in the journal
)


@cache
def campaign_code() -> str:
    """Return the hash of the campaign code, which includes the worker code."""
    return source_hash(campaign_files())


def campaign_files() -> list[Path]:
    """Return the files of the campaign code."""
    rooms = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return [*worker_files(), *rooms, *(ROOT / name for name in FILES)]

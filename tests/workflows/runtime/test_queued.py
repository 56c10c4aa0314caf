"""Sentence about a waiting job: reason in plain words, expected start."""

from __future__ import annotations

import time

import pytest

from site_configs.library.schedulers import JobFacts
from site_configs.library.schedulers.waits import meaning_of
from workflows.runtime.queued import queued_text

NOW = time.mktime((2026, 11, 28, 14, 0, 0, 0, 0, -1))


def text(reason: str, expected: float | None = None) -> str:
    facts = JobFacts("4711", "cf", "pending", NOW - 720, None, None, 2, "q", None, reason, 3600, expected)
    return queued_text("4711", facts, 720, NOW)


@pytest.mark.parametrize(
    ("reason", "expected", "shown"),
    [
        ("Priority", None, "queued for 12 min (job 4711, Priority)"),
        ("Priority", NOW + 1800, "queued for 12 min (job 4711, Priority), expected to start about 14:30"),
        ("", NOW - 60, "queued for 12 min (job 4711)"),  # an old estimate
        (
            "Resources",
            NOW + 3 * 86400,
            "queued for 12 min (job 4711, Resources), expected to start about Tue 01 Dec 14:00",
        ),
        (
            "AssocGrpBillingMinutes",
            NOW + 1800,
            "queued for 12 min (job 4711, AssocGrpBillingMinutes: the allocation has too few hours left for it: ask for"
            " more hours, or for a shorter block), it does not start by itself",
        ),
        (
            "Not Running: would exceed queue small's per-user limit",
            None,
            "queued for 12 min (job 4711, would exceed queue small's per-user limit: a limit on jobs, nodes or devices"
            " of one user, project or queue; it starts when others have ended)",
        ),
    ],
)
def test_a_waiting_job(reason: str, expected: float | None, shown: str) -> None:
    assert text(reason, expected) == shown
    assert queued_text("7", None, 0, NOW) == "queued for 0 min (job 7)"


@pytest.mark.parametrize(
    ("reason", "says", "lasting"),
    [
        ("QOSMaxJobsPerUserLimit", "running jobs", False),
        ("AssocGrpJobsLimit", "running jobs", False),
        ("QOSMaxNodePerUserLimit", "nodes or devices", False),
        ("QOSMaxGRESPerUser", "nodes or devices", False),
        ("QOSMaxWallDurationPerJobLimit", "smaller walltime", True),
        ("QOSMaxNodePerJobLimit", "fewer nodes", True),
        ("PartitionTimeLimit", "smaller walltime", True),
        ("PartitionNodeLimit", "fewer nodes", True),
        ("AssocGrpCPUMinutesLimit", "too few hours", True),
        ("QOSGrpBillingMinutes", "too few hours", True),
        ("AssocGrpCPURunMinutesLimit", "running jobs hold", False),
        ("ReqNodeNotAvail", "down, drained or reserved", False),
        ("ReqNodeNotAvail, UnavailableNodes:nid[001-004]", "down, drained or reserved", False),
        ("ReqNodeNotAvail, Reserved for maintenance", "a maintenance", False),
        ("InvalidAccount", "not valid", True),
        ("InvalidQOS", "not valid", True),
        ("BadConstraints", "no node of the machine fits", True),
        ("Reservation", "has not begun", False),
        ("PartitionDown", "stopped by the facility", False),
        ("PartitionInactive", "stopped by the facility", False),
        ("JobHeldUser", "held", True),
        ("JobHeldAdmin", "held", True),
        ("launch failed requeued held", "held", True),
        ("DependencyNeverSatisfied", "has failed", True),
        ("Job held", "held", True),
        ("Not Running: project ABC has a negative balance", "too few hours", True),
        ("Licenses", "licence", False),
        ("Not Running: User has reached queue debug running job limit.", "a limit", False),
        ("Not Running: Queue prod is not started", "stopped by the facility", False),
        ("Can Never Run: Insufficient amount of resource: ngpus (R: 8 A: 4 T: 4)", "no node of the machine", True),
        ("Not Running: Job would cross dedicated time boundary", "dedicated time", False),
    ],
)
def test_reasons_in_plain_words(reason: str, says: str, lasting: bool) -> None:
    wait = meaning_of(reason)
    assert wait is not None and says in wait.meaning and wait.lasting is lasting


@pytest.mark.parametrize(
    "reason",
    ["", "None", "Priority", "Resources", "BeginTime", "Dependency", "Not Running: Not enough free nodes available"],
)
def test_an_ordinary_wait_needs_no_words(reason: str) -> None:
    assert meaning_of(reason) is None

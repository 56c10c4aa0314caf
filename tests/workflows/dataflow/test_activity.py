"""The activity of a site, from its futures, its batch jobs and its progress file."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from workflows.dataflow.activity import activity_of
from workflows.dataflow.round import LocalRound
from workflows.globus.route import GlobusRoute

PROGRESS = {"round": 2, "phase": "training", "step": 3, "steps": 6}


def kernel(progress: Any = None, watch: Any = None) -> Any:
    watches = {} if watch is None else {"north": watch}
    return SimpleNamespace(
        globus=GlobusRoute(), watches=watches, progress=lambda site: progress, seen_at=lambda site: None
    )


def futures(done: int) -> LocalRound:
    """The futures of a round of which the first so many are done."""
    made: list[Future[Any]] = [Future() for _ in range(4)]
    for future in made[:done]:
        future.set_result({})
    return LocalRound(*made)


def phase(done: int | None, progress: Any = None, **changes: Any) -> str:
    state = {"enrolled": True, "asking": False, "begun": True} | changes
    return activity_of("north", kernel(progress), None if done is None else futures(done), 2, **state).phase


@pytest.mark.parametrize(
    ("done", "expected"), [(0, "idle"), (1, "staging"), (2, "queued"), (3, "returning"), (4, "idle"), (None, "ready")]
)
def test_the_phase_follows_the_futures(done: int | None, expected: str) -> None:
    assert phase(done) == expected


def test_progress_counts_for_its_own_round_only() -> None:
    assert phase(2, PROGRESS) == "training"
    assert phase(2, PROGRESS | {"round": 1}) == "queued"


def test_before_the_first_event_a_site_waits_for_the_others() -> None:
    assert phase(None, begun=False) == "gathering"
    assert phase(None, enrolled=False) == "starting"
    assert phase(None, asking=True) == "asking"


def test_a_batch_job_that_waits_is_what_a_site_does() -> None:
    waiting: Any = SimpleNamespace(running=lambda: False, state=lambda: "queued for 3 min (job 7)")
    shown = activity_of("north", kernel(PROGRESS, waiting), futures(2), 2, enrolled=True, asking=False, begun=True)
    assert (shown.phase, shown.progress) == ("queued for 3 min (job 7)", None)

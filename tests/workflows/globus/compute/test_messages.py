"""Status texts of a site behind Globus: open calls, transfers, the age of the displayed state."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.console.units import clock_text
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.executor import calls_text
from workflows.globus.compute.liveness import state_time
from workflows.globus.route import GlobusRoute
from workflows.globus.transfer.errors import TransferFailed
from workflows.reporting.display import phase_text

NOON = time.mktime((2026, 8, 14, 12, 0, 0, 0, 0, -1))
TRAINING: Any = {"phase": "training", "round": 2, "step": 40, "steps": 100, "loss": None, "tokens_per_s": 90.0}


def call(status: str | None = None, submitted_at: float | None = NOON, over: bool = False) -> Call:
    """A call whose task has this status; None: it has none yet."""
    made = Call("k", CallTarget("polaris", "e"), "f", "{}", answer={"result": 1} if over else None)
    if status is not None:
        made.submitted("task", 0.0, submitted_at)
        made.update("task", {"status": status}, 1.0)
    return made


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ([], "submitting to its endpoint"),
        ([call("success", over=True)], None),
        ([call()], "submitting to its endpoint"),
        ([call("waiting-for-ep")], "submitted at 12:00; its endpoint is starting or waiting for a block"),
        ([call("waiting-for-ep"), call(over=True)], "submitted at 12:00; no further status from its endpoint yet"),
        ([call("waiting-for-nodes")], "submitted at 12:00; waiting at its endpoint for a block"),
        ([call("running")], "submitted at 12:00; running at its endpoint"),
        ([call("received", None)], "submitted; its endpoint is starting or waiting for a block"),
        (
            [call("received", NOON - 3600), call("received")],
            "submitted at 12:00; its endpoint is starting or waiting for a block",
        ),
    ],
)
def test_status_of_the_calls_to_an_endpoint(calls: list[Call], text: str | None) -> None:
    assert calls_text(calls, NOON + 600) == text


def test_a_submission_of_another_day_shows_the_date() -> None:
    assert clock_text(NOON, NOON + 3600) == "at 12:00"
    assert clock_text(NOON, NOON + 24 * 3600) == "on 2026-08-14 at 12:00"
    later = calls_text([call("received")], NOON + 24 * 3600)
    assert later == "submitted on 2026-08-14 at 12:00; its endpoint is starting or waiting for a block"


def sent(nbytes: int) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result({"nbytes_moved": nbytes})
    return future


def test_the_model_that_was_sent_is_shown_first() -> None:
    asked = SimpleNamespace(status_text=lambda: "submitted at 12:00")
    route = GlobusRoute({"polaris": asked, "aurora": SimpleNamespace(status_text=lambda: None)})  # type: ignore[dict-item]
    assert route.task_text("polaris") == "submitted at 12:00"
    assert route.task_text("polaris", sent(2_630_000_000)) == "model sent (2.63 GB); submitted at 12:00"
    assert (
        route.task_text("polaris", sent(0)) == "submitted at 12:00"
    )  # it was there, or another site's transfer brought it
    assert route.task_text("aurora", sent(1)) is None and route.task_text("here", sent(1)) is None
    failed: Future[Any] = Future()
    failed.set_exception(TransferFailed("no"))
    assert route.task_text("polaris", failed) == "submitted at 12:00"


def test_a_state_that_is_read_remotely_shows_its_age() -> None:
    now = time.time()
    assert phase_text("training", TRAINING) == "round 2: step 40 of 100"
    assert phase_text("training", TRAINING, seen_at=now - 2) == "round 2: step 40 of 100"
    assert phase_text("training", TRAINING, seen_at=now - 45) == "round 2: step 40 of 100, 45 s ago"
    assert phase_text("loading", TRAINING, seen_at=now - 1500) == "round 2: loading model and data, 25 min ago"
    assert phase_text("idle", None, seen_at=now - 45) == "idle, waiting for the others"  # known here


def test_a_state_that_is_read_directly_has_no_age() -> None:
    far: Any = SimpleNamespace(last_look={"seen_at": 7.0, "changed_at": None})
    route = GlobusRoute({"polaris": far})
    assert route.seen_at("polaris") == 7.0 and route.seen_at("here") is None


@given(site_time=st.none() | st.floats(0, 1e10), requested=st.floats(0, 1e10), took=st.floats(0, 1e3))
def test_a_wrong_clock_does_not_make_a_state_older_than_the_request(
    site_time: float | None, requested: float, took: float
) -> None:
    moment = state_time({} if site_time is None else {"time": site_time}, requested, requested + took)
    assert requested <= moment <= requested + took
    assert moment == site_time or not (site_time is not None and requested <= site_time <= requested + took)

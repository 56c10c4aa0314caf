"""What people are told of a site behind Globus: what it is asked, what has gone there, how old a view is."""

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
from workflows.reporting.display import phase_words

NOON = time.mktime((2026, 8, 14, 12, 0, 0, 0, 0, -1))
TRAINING: Any = {"phase": "training", "round": 2, "step": 40, "steps": 100, "loss": None, "tokens_per_s": 90.0}


def call(status: str | None = None, submitted_at: float | None = NOON, over: bool = False) -> Call:
    """A call whose task has this status; None: it has none yet."""
    made = Call("k", CallTarget("polaris", "e", "python"), "f", "{}", answer={"result": 1} if over else None)
    if status is not None:
        made.submitted("task", 0.0, submitted_at)
        made.update("task", {"status": status}, 1.0)
    return made


@pytest.mark.parametrize(
    ("calls", "words"),
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
def test_what_an_endpoint_is_asked(calls: list[Call], words: str | None) -> None:
    assert calls_text(calls, NOON + 600) == words


def test_a_question_of_another_day_tells_the_day() -> None:
    assert clock_text(NOON, NOON + 3600) == "at 12:00"
    assert clock_text(NOON, NOON + 24 * 3600) == "on 2026-08-14 at 12:00"
    later = calls_text([call("received")], NOON + 24 * 3600)
    assert later == "submitted on 2026-08-14 at 12:00; its endpoint is starting or waiting for a block"


def sent(nbytes: int) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result({"nbytes_moved": nbytes})
    return future


def test_the_model_that_has_gone_there_is_told_first() -> None:
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


def test_a_view_from_afar_tells_its_age() -> None:
    now = time.time()
    assert phase_words("training", TRAINING) == "round 2: step 40 of 100"
    assert phase_words("training", TRAINING, seen_at=now - 2) == "round 2: step 40 of 100"
    assert phase_words("training", TRAINING, seen_at=now - 45) == "round 2: step 40 of 100, 45 s ago"
    assert phase_words("loading", TRAINING, seen_at=now - 1500) == "loading model and data, 25 min ago"
    assert phase_words("idle", None, seen_at=now - 45) == "idle, waiting for the others"  # known here


def test_where_a_site_is_seen_from_here_nothing_has_an_age() -> None:
    far: Any = SimpleNamespace(last_look={"seen_at": 7.0, "changed_at": None})
    route = GlobusRoute({"polaris": far})
    assert route.seen_at("polaris") == 7.0 and route.seen_at("here") is None


@given(told=st.none() | st.floats(0, 1e10), asked=st.floats(0, 1e10), took=st.floats(0, 1e3))
def test_a_wrong_clock_does_not_make_a_view_older_than_the_question(
    told: float | None, asked: float, took: float
) -> None:
    moment = state_time({} if told is None else {"time": told}, asked, asked + took)
    assert asked <= moment <= asked + took
    assert moment == told or not (told is not None and asked <= told <= asked + took)

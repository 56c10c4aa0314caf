"""State of a call: which answers count, when it is submitted again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import (
    AnswerRefused,
    CrossfedError,
    LeaseHeld,
    SiteMistake,
    StorageUnavailable,
    TaskError,
    TrainingError,
    UserMistake,
    WorkersLost,
)
from workflows.globus.compute.calls import RESULT_GRACE_S, RETRY_S, Call, CallTarget
from workflows.globus.compute.messages import call_key, pack, read_answer, read_failure, require_fits

LOST = "Traceback ...\nparsl.executors.high_throughput.errors.WorkerLost: Task failure due to loss of worker 0\n ***\n"
BUSY = "Another instance of this endpoint is running.  (Perhaps on another login node?)  Refusing to start."


def result(value: Any) -> dict:
    return {"status": "success", "result": "11\n" + json.dumps(json.dumps({"result": value}))}


def error(kind: str) -> dict:
    return {"status": "success", "result": "11\n" + json.dumps(json.dumps({"error": {"kind": kind, "what": "no"}}))}


def open_call(*task_ids: str, now: float = 0.0) -> Call:
    made = Call("k", CallTarget("aurora", "e", silence_s=100, queue_s=1000), "f", "{}", training_id="t")
    for task_id in task_ids:
        made.submitted(task_id, now)
    return made


def test_the_first_good_answer_counts():
    call = open_call("a", "b")
    assert call.update("b", result(7), 1) == "success"
    assert call.over and not call.future.done()
    call.resolve()
    call.resolve()
    assert call.future.result() == 7
    assert list(call.attempts) == ["a"]


@pytest.mark.parametrize("last", [False, True])
def test_a_lost_attempt_counts_when_it_was_the_last(last):
    call = open_call("a") if last else open_call("a", "b")
    assert call.update("a", {"status": "failed", "exception": LOST}, 1) == "WorkersLost"
    call.resolve()
    assert call.over is last
    if last:
        with pytest.raises(WorkersLost, match=r"^site aurora: the endpoint has lost the task: .*loss of worker 0$"):
            call.future.result()


def test_an_error_of_the_call_itself_ends_it():
    call = open_call("a", "b")
    assert call.update("a", error("TrainingError"), 1) == "TrainingError"
    call.resolve()
    assert isinstance(call.future.exception(), TrainingError)


def test_a_held_lease_is_waited_for_or_the_call_is_submitted_again():
    call = open_call("a", "b")
    assert call.update("b", error("LeaseHeld"), 1) == "LeaseHeld"
    assert call.due is None and not call.over
    assert call.update("a", error("LeaseHeld"), 5) == "LeaseHeld"
    assert call.due == 5 + RETRY_S


def test_a_restarting_endpoint_is_waited_for():
    call = open_call("a")
    assert call.update("a", {"status": "failed", "exception": BUSY}, 3) == "not yet"
    assert (call.over, call.due, call.attempts) == (False, 3 + RETRY_S, {})


@pytest.mark.parametrize(
    "record", [None, {"status": "failed", "reason": "unknown task"}, {"status": "ABANDONED"}, {"status": "success"}]
)
def test_a_task_unknown_to_the_service_is_submitted_again(record):
    call = open_call("a")
    assert call.update("a", record, 1) is None  # once may be a slip
    assert call.update("a", {"status": "running"}, 2) is None
    assert call.update("a", record, 3) is None
    assert call.update("a", record, 4) == "forgotten"
    assert (call.due, call.over) == (4, False)


def test_silence_counts_from_the_last_change():
    call = open_call("a", now=10)
    assert not call.is_silent(1009)
    assert call.is_silent(1011)
    call.update("a", {"status": "waiting-for-nodes"}, 500)
    call.update("a", {"status": "waiting-for-nodes"}, 900)
    assert not call.is_silent(1499) and call.is_silent(1501)
    call.update("a", {"status": "running"}, 1400)
    assert not call.is_silent(1499) and call.is_silent(1501)
    call.observe(1450, active=True, written=False)
    assert not call.is_silent(1549) and call.is_silent(1551)
    call.resubmit(1551)
    assert call.due == 1551 and not call.is_silent(9999)
    call.submitted("b", 1552)
    assert set(call.attempts) == {"a", "b"}
    assert not call.is_silent(1952) and call.is_silent(1953)  # what was lost once is not waited for so long


def test_a_call_without_files_at_the_site_is_submitted_again_earlier_and_then_less_often():
    call, moments = open_call("a"), []
    call.training_id = None
    for now in range(2000):
        if call.is_silent(now):
            call.resubmit(now)
            call.submitted(f"again at {now}", now)
            moments.append(now)
    assert moments == [201, 602, 1403]


def test_a_result_at_the_site_that_is_not_delivered():
    call = open_call("a")
    for now in (10, 30):
        call.observe(now, active=False, written=True)
    assert not call.is_silent(10 + RESULT_GRACE_S) and call.is_silent(11 + RESULT_GRACE_S)


DEEP = "11\n" + json.dumps("[" * 200_000)


@pytest.mark.parametrize(
    "buffer",
    [
        "00\ngASVBQAAAAAAAACMAWGULg==\n",
        "01\nabc",
        "st\nf:def f(): pass",
        "",
        None,
        7,
        "11\n7",
        '11\n"x"',
        '11\n"[]"',
        DEEP,
    ],
)
def test_answers_in_any_other_form_are_refused_unread(buffer):
    found = read_answer(buffer, "aurora")
    assert type(found) in (TaskError, AnswerRefused)
    assert any(reason in str(found) for reason in ("cannot be read", "not JSON", "neither", "levels deep"))


@given(st.text())
def test_any_text_is_an_answer_or_an_error(text):
    for buffer in (text, "11\n" + text, "11\n" + json.dumps(text)):
        assert isinstance(read_answer(buffer, "aurora"), dict | CrossfedError)
    assert isinstance(read_failure(text), WorkersLost | TaskError)
    assert "\n" not in str(read_failure(text))


@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x)))
def test_equal_calls_have_equal_keys(value):
    there = json.loads(pack("f", [value]))
    assert call_key("aurora", "f", there["args"]) == call_key("aurora", "f", [value])
    assert call_key("aurora", "f", [value]) != call_key("polaris", "f", [value])


def test_what_is_too_large_is_refused_with_site_and_bytes():
    require_fits("aurora", "f", "x" * 9_000_000)
    with pytest.raises(UserMistake, match=r"site aurora: the arguments of f are 9600002 bytes, .* takes 9500000"):
        require_fits("aurora", "f", "x" * 9_600_000)
    with pytest.raises(UserMistake, match="10000002 bytes"):
        require_fits("aurora", "f", '"' * 5_000_000)


def test_received_errors_keep_their_kind():
    found = read_answer(error("LeaseHeld")["result"], "aurora")
    assert isinstance(found, LeaseHeld)
    too_large = read_failure("globus_compute_sdk.errors.MaxResultSizeExceeded: Task result of 11B exceeded limit")
    assert type(too_large) is TaskError


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [("UserMistake", SiteMistake), ("ModelNotFinite", TaskError), ("StorageUnavailable", StorageUnavailable)],
)
def test_a_site_behind_an_endpoint_speaks_of_itself_alone(kind: str, becomes: type):
    """As on the other routes: it blames no other site or round, and ends nobody's campaign."""
    record = {"kind": kind, "what": "no", "site": "frontier", "round": 7}
    call = open_call("a")
    call.round = 3
    call.update("a", {"status": "success", "result": "11\n" + json.dumps(json.dumps({"error": record}))}, 1)
    found = call.answer
    assert type(found) is becomes
    assert (found.site, found.round, found.from_site) == ("aurora", 3, True)

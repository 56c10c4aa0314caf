"""When to save and when to stop, with a clock that tests move."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from apps.base.stop import StopRequest, stop_on_sigterm
from apps.training.deadline import FIRST_SAVE_S, MARGIN_S, Deadline, block_end


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1700000000"}, None),  # not of a block that we started
        ({"SLURM_JOB_END_TIME": "1690000000"}, None),
        ({"CROSSFED_BLOCK_END": "1690000000"}, None),  # left in a shell
        ({"SLURM_JOB_END_TIME": "1690000000", "CROSSFED_BLOCK_END": "1700000060"}, 1700000060.0),
        ({"CROSSFED_BLOCK_END": "1699999990"}, 1699999990.0),  # it has just ended: save at once
        ({"CROSSFED_BLOCK_END": "1700000060"}, 1700000060.0),
        ({"SLURM_JOB_END_TIME": "1700000000", "CROSSFED_BLOCK_END": "1700000060"}, 1700000000.0),
        ({"SLURM_JOB_END_TIME": "1700000090", "CROSSFED_BLOCK_END": "1700000060"}, 1700000060.0),
        ({"SLURM_JOB_END_TIME": "UNLIMITED", "CROSSFED_BLOCK_END": "0"}, None),
        ({"CROSSFED_BLOCK_END": "inf"}, None),
    ],
)
def test_the_end_of_the_block_is_the_earliest_of_its_variables(environment, end):
    assert block_end(environment, now=1699999999.0) == end


def test_outside_of_a_batch_job_there_is_no_end(monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "CROSSFED_BLOCK_END"):
        monkeypatch.delenv(name, raising=False)
    assert block_end() is None


def test_it_stops_when_the_next_step_would_end_too_late():
    clock = Clock()
    deadline = Deadline(300.0, 1100.0, StopRequest(), clock=clock)
    deadline.stepped(20.0)
    clock.now = 1100 - MARGIN_S - 20
    assert not deadline.must_stop()
    clock.now += 0.1
    assert deadline.must_stop()


def test_a_save_that_takes_long_is_given_twice_its_time():
    clock = Clock()
    deadline = Deadline(300.0, 1100.0, StopRequest(), clock=clock)
    deadline.stepped(10.0)
    deadline.saved(2 * MARGIN_S)
    clock.now = 1100 - 4 * MARGIN_S - 10
    assert not deadline.must_stop()
    clock.now += 0.1
    assert deadline.must_stop()


def test_times_of_an_earlier_attempt_count_from_the_start():
    clock = Clock()
    assert Deadline(300.0, 1000 + MARGIN_S + 49, StopRequest(), step_s=50.0, clock=clock).must_stop()
    assert not Deadline(300.0, 1000 + MARGIN_S + 51, StopRequest(), step_s=50.0, clock=clock).must_stop()
    assert not Deadline(300.0, None, StopRequest(), step_s=50.0, clock=clock).must_stop()


def test_a_slow_step_is_remembered_for_a_while():
    deadline = Deadline(300.0, None, StopRequest())
    deadline.stepped(10.0)
    deadline.stepped(2.0)
    assert deadline.step_s == pytest.approx(9.2)
    for _ in range(100):
        deadline.stepped(2.0)
    assert deadline.step_s == pytest.approx(2.0, rel=0.01)


def test_the_first_save_is_early_and_the_others_regular():
    clock = Clock()
    deadline = Deadline(300.0, None, StopRequest(), clock=clock)
    due = []
    for second in range(1, 1000):
        clock.now = 1000.0 + second
        if deadline.save_is_due():
            due.append(second)
            deadline.saved(1.0)
    assert due == [FIRST_SAVE_S, FIRST_SAVE_S + 300, FIRST_SAVE_S + 600, FIRST_SAVE_S + 900]


def test_a_save_whose_price_is_known_is_not_early():
    clock = Clock()
    deadline = Deadline(300.0, None, StopRequest(), save_s=215.0, clock=clock)
    deadline.stepped(1.6)
    clock.now += 299
    assert not deadline.save_is_due(1000)
    clock.now += 1
    assert deadline.save_is_due(1000)


def test_a_save_is_left_out_where_the_end_is_nearer_than_its_price():
    """A round of 30 steps of 1.6 s writes no 81 GB for 215 s."""
    clock = Clock()
    deadline = Deadline(10.0, None, StopRequest(), save_s=215.0, clock=clock)
    deadline.stepped(1.6)
    clock.now += 48
    assert not deadline.save_is_due(30)
    assert not deadline.save_is_due(134)  # 214 s
    assert deadline.save_is_due(135)
    assert deadline.save_is_due()


def test_a_known_price_keeps_its_distance_from_the_end_of_the_block():
    clock = Clock()
    assert Deadline(300.0, 1000 + 429.0, StopRequest(), save_s=215.0, clock=clock).must_stop()
    assert not Deadline(300.0, 1000 + 431.0, StopRequest(), save_s=215.0, clock=clock).must_stop()


def test_a_request_stops_it_at_once():
    stop = StopRequest()
    deadline = Deadline(300.0, None, stop)
    assert not deadline.must_stop()
    stop()
    assert deadline.must_stop()


def test_sigterm_is_a_request_for_a_while_only():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stop_on_sigterm() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_the_end_of_a_request_differs_from_the_end_of_its_block():
    clock = Clock()
    deadline = Deadline(300.0, None, StopRequest(), clock=clock, until=1010.0)
    assert not deadline.is_over() and not deadline.must_stop()
    clock.now = 1010.0
    assert deadline.is_over() and not deadline.must_stop()
    assert not Deadline(300.0, None, StopRequest(), clock=clock).is_over()

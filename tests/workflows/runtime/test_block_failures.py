"""How long a site waits after blocks that fail, what the user is told, and when the site is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import JobState, JobStatus

from site_configs.library.status_provider import NotSubmitted
from workflows.runtime.block_failures import FIRST_WAIT_S, LONGEST_WAIT_S, MOST_FAILURES, BlockPatience, BlocksFailed

FAILURES = (JobState.FAILED, JobState.MISSING)
GOOD = (JobState.COMPLETED, JobState.TIMEOUT, JobState.CANCELLED, JobState.SCALED_IN)


@dataclass
class Executor:
    """What the handler sees of Parsl's executor."""

    label: str = "alpha"
    bad_state_is_set: bool = False
    given_up: list[Exception] = field(default_factory=list)
    blocks_to_job_id: dict[str, str] = field(default_factory=dict)
    provider: Any = field(default_factory=lambda: SimpleNamespace(max_blocks=1))

    def set_bad_state_and_fail_all(self, error: Exception) -> None:
        self.bad_state_is_set = True
        self.given_up.append(error)


class Trial:
    """A handler with a clock of its own, and the blocks of one executor."""

    def __init__(self) -> None:
        self.now, self.told, self.executor = 1000.0, list[tuple[str, str]](), Executor()
        self.status: dict[str, JobStatus] = {}
        self.patience = BlockPatience(lambda site, reason: self.told.append((site, reason)), lambda: self.now)

    def look(self) -> None:
        self.patience(self.executor, self.status)

    def block(self, state: JobState, message: str | None = None, submitted: bool = True, **paths: Any) -> None:
        """One more block, in this state."""
        block_id = str(len(self.status))
        if submitted:
            self.executor.blocks_to_job_id[block_id] = f"job-{block_id}"
        self.status[block_id] = JobStatus(state, message, **paths)
        self.look()

    def held_s(self) -> float:
        """How long from now no block is admitted."""
        return max(0.0, self.patience.tries["alpha"].held_until - self.now)


@pytest.fixture
def trial() -> Trial:
    return Trial()


def test_the_waits_double_up_to_the_longest(trial: Trial) -> None:
    waits = []
    for _ in range(MOST_FAILURES - 1):
        trial.block(JobState.FAILED)
        waits.append(trial.held_s())
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert [reason.rpartition("; ")[2] for _, reason in trial.told] == [
        f"the next is asked for in {wait_s} s" for wait_s in (10, 20, 40, 80, 160, 320, 600, 600, 600)
    ]


@pytest.mark.parametrize("state", GOOD)
def test_a_good_block_starts_the_waits_anew(trial: Trial, state: JobState) -> None:
    trial.block(JobState.FAILED)
    trial.block(JobState.MISSING)
    trial.now += 100
    trial.block(state)
    assert trial.held_s() == 0 and trial.executor.provider.max_blocks == 1
    trial.block(JobState.FAILED)
    assert trial.held_s() == FIRST_WAIT_S


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
def test_a_block_that_has_not_ended_says_nothing(trial: Trial, state: JobState) -> None:
    trial.block(JobState.FAILED)
    trial.block(state)
    trial.block(JobState.FAILED)
    assert trial.held_s() == 2 * FIRST_WAIT_S


def test_no_block_is_admitted_while_the_site_is_held(trial: Trial) -> None:
    trial.block(JobState.MISSING)
    assert trial.executor.provider.max_blocks == 0
    trial.now += FIRST_WAIT_S - 0.1
    trial.look()
    assert trial.executor.provider.max_blocks == 0
    trial.now += 0.2
    trial.look()
    assert trial.executor.provider.max_blocks == 1


def test_an_end_counts_once_whatever_parsl_calls_it_later(trial: Trial) -> None:
    trial.block(JobState.FAILED, submitted=False)
    trial.look()
    trial.status["0"].state = JobState.MISSING
    trial.look()
    assert len(trial.told) == 1 and trial.held_s() == FIRST_WAIT_S


def test_a_site_is_given_up_after_many_failures_with_the_last_reason(trial: Trial) -> None:
    for number in range(MOST_FAILURES - 1):
        trial.block(JobState.FAILED, f"failed {number}")
    assert trial.executor.given_up == []
    trial.block(JobState.FAILED, "failed NonZeroExitCode")
    (error,) = trial.executor.given_up
    assert isinstance(error, BlocksFailed) and len(trial.told) == MOST_FAILURES - 1
    assert str(error) == (
        "site alpha: 10 blocks in a row have failed, the last: a block has failed: failed NonZeroExitCode"
    )
    trial.block(JobState.FAILED)  # Parsl's own answer to a second giving up is an error
    assert len(trial.executor.given_up) == 1 and len(trial.told) == MOST_FAILURES - 1


def test_sites_do_not_wait_for_one_another(trial: Trial) -> None:
    trial.block(JobState.FAILED)
    other = Executor("beta")
    trial.patience(other, {"0": JobStatus(JobState.RUNNING)})
    assert (trial.executor.provider.max_blocks, other.provider.max_blocks) == (0, 1)


# -- the words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", FAILURES)
def test_a_refused_submission_is_told_in_the_schedulers_words(trial: Trial, state: JobState) -> None:
    """Parsl calls it FAILED, and MISSING after its next question for the states."""
    refusal = NotSubmitted("cf-12-ab", "sbatch: error: Invalid account\nsbatch: error: Batch job submission failed")
    trial.block(state, f"Failed to start block 0: {refusal}", submitted=False)
    assert trial.told == [
        (
            "alpha",
            "a block could not be submitted: sbatch: error: Invalid account sbatch: error: Batch job submission failed;"
            " the next is asked for in 10 s",
        )
    ]


def reason_of(trial: Trial) -> str:
    return trial.told[-1][1].rpartition("; the next")[0]


def test_the_jobs_last_words_stand_with_the_schedulers(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "err").write_text("one\nbash: module: command not found\n\n")
    trial.block(JobState.MISSING, "failed NonZeroExitCode", stderr_path=str(tmp_path / "err"))
    assert reason_of(trial) == (
        "a block ended before its worker began: failed NonZeroExitCode; bash: module: command not found"
    )
    trial.block(JobState.MISSING, stderr_path=str(tmp_path / "err"))
    assert reason_of(trial) == "a block ended before its worker began: bash: module: command not found"


def test_a_block_that_had_begun_has_failed(trial: Trial) -> None:
    trial.block(JobState.FAILED, "node_fail NodeFail")
    assert reason_of(trial) == "a block has failed: node_fail NodeFail"


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00broken"])
def test_a_job_without_last_words(trial: Trial, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "err").write_bytes(content)
    trial.block(JobState.MISSING, stderr_path=str(tmp_path / "err"))
    assert reason_of(trial) == "a block ended before its worker began"


def test_last_words_that_cannot_be_read(trial: Trial, tmp_path: Path) -> None:
    trial.block(JobState.MISSING, "timeout", stderr_path=str(tmp_path))
    assert reason_of(trial) == "a block ended before its worker began: timeout"


def test_a_flood_of_words_is_cut(trial: Trial) -> None:
    trial.block(JobState.MISSING, "x" * 5000)
    assert len(reason_of(trial)) < 400


# -- for all courses of things ----------------------------------------------------------------------------------

PAUSES = st.integers(0, 2000)


@given(st.lists(st.tuples(st.sampled_from(FAILURES), PAUSES), max_size=MOST_FAILURES - 1))
def test_waits_never_shrink_while_failures_go_on(course: list[tuple[JobState, float]]) -> None:
    trial, waits = Trial(), [0.0]
    for state, pause_s in course:
        trial.now += pause_s
        trial.block(state)
        waits.append(trial.held_s())
    assert waits == sorted(waits) and waits[-1] <= LONGEST_WAIT_S


@given(st.lists(st.tuples(st.sampled_from(FAILURES + GOOD), PAUSES)))
def test_blocks_are_admitted_just_when_the_site_is_not_held(course: list[tuple[JobState, float]]) -> None:
    trial, row = Trial(), 0
    for state, pause_s in course:
        trial.now += pause_s
        trial.block(state)
        row = row + 1 if state in FAILURES else 0
        assert trial.executor.provider.max_blocks == (0 if trial.held_s() else 1)
        assert bool(trial.executor.given_up) >= (row >= MOST_FAILURES)


Handler = Callable[[Any, dict[str, JobStatus]], None]


def test_it_is_what_parsl_takes() -> None:
    """Parsl calls ``block_error_handler(executor, status)`` and accepts any callable that is no truth value."""
    handler: Handler = BlockPatience(lambda site, reason: None)
    assert callable(handler) and not isinstance(handler, bool)

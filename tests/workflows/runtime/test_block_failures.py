"""Failed blocks: how long a site waits after them, what is reported, and when the site is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.jobs.states import JobState, JobStatus

from apps.base.errors import UserMistake
from site_configs.library.status_provider import NotSubmitted
from workflows.records.failed_blocks import BlockFailure, failure_text
from workflows.runtime.block_failures import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    MOST_FAILURES,
    BlockFailureHandler,
    BlocksFailed,
)

FAILURES = (JobState.FAILED, JobState.MISSING)
GOOD = (JobState.COMPLETED, JobState.TIMEOUT, JobState.CANCELLED, JobState.SCALED_IN)


@dataclass
class Executor:
    """The part of Parsl's executor that the handler uses."""

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
        self.now, self.executor = 1000.0, Executor()
        self.reported: list[tuple[str, BlockFailure]] = []
        self.status: dict[str, JobStatus] = {}
        self.handler = BlockFailureHandler(lambda *failure: self.reported.append(failure), lambda: self.now)

    def look(self) -> None:
        self.handler(self.executor, self.status)

    def block(self, state: JobState, message: str | None = None, submitted: bool = True, **paths: Any) -> None:
        """Add a block in this state."""
        block_id = str(len(self.status))
        if submitted:
            self.executor.blocks_to_job_id[block_id] = f"job-{block_id}"
        self.status[block_id] = JobStatus(state, message, **paths)
        self.look()

    def held_s(self) -> float:
        """Return how long from now no block is allowed."""
        return max(0.0, self.handler.histories["alpha"].held_until - self.now)

    def last(self) -> tuple[str, str]:
        """Return kind and reason of the last reported failure."""
        return self.reported[-1][1].kind, self.reported[-1][1].reason


@pytest.fixture
def trial() -> Trial:
    return Trial()


def test_the_waits_double_up_to_the_longest(trial: Trial) -> None:
    waits = []
    for _ in range(MOST_FAILURES - 1):
        trial.block(JobState.FAILED)
        waits.append(trial.held_s())
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert [failure.retry_s for _, failure in trial.reported] == waits


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
def test_a_block_that_has_not_ended_changes_nothing(trial: Trial, state: JobState) -> None:
    trial.block(JobState.FAILED)
    trial.block(state)
    trial.block(JobState.FAILED)
    assert trial.held_s() == 2 * FIRST_WAIT_S


def test_no_block_is_allowed_while_the_site_waits(trial: Trial) -> None:
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
    assert len(trial.reported) == 1 and trial.held_s() == FIRST_WAIT_S


def test_a_site_is_given_up_after_many_failures_with_the_last_reason(trial: Trial) -> None:
    for number in range(MOST_FAILURES - 1):
        trial.block(JobState.FAILED, f"failed {number}")
    assert trial.executor.given_up == []
    trial.block(JobState.FAILED, "failed NonZeroExitCode")
    (error,) = trial.executor.given_up
    assert isinstance(error, BlocksFailed) and len(trial.reported) == MOST_FAILURES - 1
    assert str(error) == (
        "site alpha: 10 blocks in a row have failed, the last: a block has failed: failed NonZeroExitCode"
    )
    trial.block(JobState.FAILED)  # Parsl raises an error when an executor is given up twice
    assert len(trial.executor.given_up) == 1 and len(trial.reported) == MOST_FAILURES - 1


def test_sites_do_not_wait_for_one_another(trial: Trial) -> None:
    trial.block(JobState.FAILED)
    other = Executor("beta")
    trial.handler(other, {"0": JobStatus(JobState.RUNNING)})
    assert (trial.executor.provider.max_blocks, other.provider.max_blocks) == (0, 1)


# -- kind and reason --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", FAILURES)
def test_a_refused_submission_has_the_schedulers_message(trial: Trial, state: JobState) -> None:
    """Parsl calls it FAILED, and MISSING after its next status query."""
    refusal = NotSubmitted("cf-12-ab", "sbatch: error: Too hot today\nsbatch: error: Batch job submission failed")
    trial.block(state, f"Failed to start block 0: {refusal}", submitted=False)
    reason = "sbatch: error: Too hot today sbatch: error: Batch job submission failed"
    assert trial.reported == [("alpha", BlockFailure("refused", reason, FIRST_WAIT_S))]


def test_the_last_line_of_a_jobs_stderr_follows_the_schedulers_message(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "err").write_text("one\nbash: module: command not found\n\n")
    trial.block(JobState.MISSING, "failed NonZeroExitCode", stderr_path=str(tmp_path / "err"))
    assert trial.last() == ("stillborn", "failed NonZeroExitCode; bash: module: command not found")
    trial.block(JobState.COMPLETED)
    trial.block(JobState.MISSING, stderr_path=str(tmp_path / "err"))
    assert trial.last() == ("stillborn", "bash: module: command not found")


def test_a_block_that_had_begun_has_failed(trial: Trial) -> None:
    trial.block(JobState.FAILED, "node_fail NodeFail")
    assert trial.last() == ("failed", "node_fail NodeFail")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00broken"])
def test_a_job_without_output(trial: Trial, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "err").write_bytes(content)
    trial.block(JobState.MISSING, stderr_path=str(tmp_path / "err"))
    assert trial.last() == ("stillborn", "")


def test_output_that_cannot_be_read(trial: Trial, tmp_path: Path) -> None:
    trial.block(JobState.MISSING, "timeout", stderr_path=str(tmp_path))
    assert trial.last() == ("stillborn", "timeout")


def test_a_long_message_is_cut(trial: Trial) -> None:
    trial.block(JobState.MISSING, "x" * 5000)
    assert len(trial.last()[1]) < 400


# -- classes of refusals ----------------------------------------------------------------------------------------

PASSING = [
    ("qsub: would exceed queue generic's per-user limit", "a limit on the number of jobs"),
    ("sbatch: error: Unable to contact slurm controller (connect failure)", "takes no jobs now"),
    ("qsub: Queue is not enabled", "takes no jobs now"),
    ("the scheduler does not answer whether it accepted this earlier job: cf-1", "takes no jobs now"),
]


@pytest.mark.parametrize(("sentence", "meaning"), PASSING)
def test_what_passes_is_waited_for_without_an_end(trial: Trial, sentence: str, meaning: str) -> None:
    for _ in range(5 * MOST_FAILURES):
        trial.block(JobState.FAILED, sentence, submitted=False)
        assert FIRST_WAIT_S <= trial.held_s() <= LONGEST_WAIT_S
        trial.now += LONGEST_WAIT_S
    assert not trial.executor.given_up
    _, failure = trial.reported[0]
    assert meaning in failure.meaning and sentence in failure.reason
    assert meaning in failure_text(asdict(failure)) and sentence in failure_text(asdict(failure))
    assert 8 <= len(trial.reported) <= 10  # once an hour of 8.3 hours


def test_the_reason_of_a_wait_is_shown_while_it_lasts(trial: Trial) -> None:
    trial.block(JobState.FAILED, PASSING[0][0], submitted=False)
    assert trial.executor.provider.holding == "waits to ask for a block again: a limit on the number of jobs"
    trial.now += FIRST_WAIT_S + 1
    trial.look()
    assert trial.executor.provider.holding == ""


def test_what_passes_does_not_count_with_what_fails(trial: Trial) -> None:
    for number in range(MOST_FAILURES - 1):
        trial.block(JobState.FAILED, f"failed {number}")
        trial.block(JobState.FAILED, PASSING[0][0], submitted=False)
    assert not trial.executor.given_up
    trial.block(JobState.FAILED, "failed at last")
    assert len(trial.executor.given_up) == 1


@pytest.mark.parametrize("sentence", ["qsub: Unknown queue", "sbatch: error: Invalid qos specification"])
def test_a_wrong_request_stops_its_site_at_once_as_a_mistake_of_the_request(trial: Trial, sentence: str) -> None:
    trial.block(JobState.FAILED, sentence, submitted=False)
    (error,) = trial.executor.given_up
    assert isinstance(error, UserMistake) and isinstance(error, BlocksFailed) and trial.reported == []
    assert sentence in str(error) and "Correct sites.alpha: queue, account" in str(error) and "resume" not in str(error)


def test_an_allocation_that_is_used_up_stops_its_site_at_once(trial: Trial) -> None:
    trial.block(JobState.FAILED, "sbatch: error: Project m1234 has insufficient balance", submitted=False)
    (error,) = trial.executor.given_up
    assert isinstance(error, BlocksFailed) and not isinstance(error, UserMistake)
    assert "Project m1234 has insufficient balance" in str(error) and "more hours" in str(error)


def test_two_blocks_that_end_alike_before_their_worker_begins_are_enough(trial: Trial, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "err").write_text(f"/var/spool/job{number}17/script: line 12: module: command not found\n")
        assert not trial.executor.given_up
        trial.block(JobState.MISSING, "failed NonZeroExitCode", stderr_path=str(tmp_path / "err"))
    (error,) = trial.executor.given_up
    assert str(error).startswith(
        "site alpha: 2 blocks in a row have ended before their worker began, with the same last output: failed"
    )
    assert "job217/script: line 12: module: command not found" in str(error) and len(trial.reported) == 1


@pytest.mark.parametrize(
    "messages",
    [
        ["failed one", "failed two", "failed one", "failed two"],
        ["node_fail NodeFail"] * 4,  # another node may be sound
        ["completed"] * 4,  # without any output
        [""] * 4,
    ],
)
def test_blocks_that_end_in_other_ways_are_tried_again(trial: Trial, messages: list[str]) -> None:
    for message in messages:
        trial.block(JobState.MISSING, message)
    assert not trial.executor.given_up


def test_a_block_that_has_worked_between_two_that_ended_alike_starts_the_count_anew(trial: Trial) -> None:
    for state in (JobState.MISSING, JobState.TIMEOUT, JobState.MISSING, JobState.FAILED, JobState.MISSING):
        trial.block(state, "failed NonZeroExitCode")
    assert not trial.executor.given_up


# -- for all sequences of failures ------------------------------------------------------------------------------

PAUSES = st.integers(0, 2000)


@given(st.lists(st.tuples(st.sampled_from(FAILURES), PAUSES), max_size=MOST_FAILURES - 1))
def test_waits_never_shrink_while_blocks_fail(course: list[tuple[JobState, float]]) -> None:
    trial, waits = Trial(), [0.0]
    for state, pause_s in course:
        trial.now += pause_s
        trial.block(state)
        waits.append(trial.held_s())
    assert waits == sorted(waits) and waits[-1] <= LONGEST_WAIT_S


@given(st.lists(st.tuples(st.sampled_from(FAILURES + GOOD), PAUSES)))
def test_blocks_are_allowed_exactly_when_the_site_does_not_wait(course: list[tuple[JobState, float]]) -> None:
    trial, in_a_row = Trial(), 0
    for state, pause_s in course:
        trial.now += pause_s
        trial.block(state)
        in_a_row = in_a_row + 1 if state in FAILURES else 0
        assert trial.executor.provider.max_blocks == (0 if trial.held_s() else 1)
        assert bool(trial.executor.given_up) >= (in_a_row >= MOST_FAILURES)


Handler = Callable[[Any, dict[str, JobStatus]], None]


def test_parsl_accepts_it() -> None:
    """Parsl calls ``block_error_handler(executor, status)`` and takes any callable that is not a bool."""
    handler: Handler = BlockFailureHandler(lambda site, failure: None)
    assert callable(handler) and not isinstance(handler, bool)

"""The state of transfers in the journal is the same for the driver that wrote it and for the next."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.globus.transfer.transfer_log import SUCCEEDED, Transfer, TransferLog, TransferState
from workflows.records.journal import Journal

TRANSFER = Transfer("k1", "polaris", 3, "send", "collection", "a" * 64, 1000, 1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def known(log: TransferLog, key: str = "k1") -> TransferState:
    state = log.find(key)
    assert state is not None
    return state


def test_a_transfer_step_by_step(journal: Journal):
    log = TransferLog(journal)
    assert log.find("k1") is None
    log.submitting(TRANSFER, "name 1")
    assert (known(log).submission_id, known(log).task_id, known(log).state) == ("name 1", None, None)
    log.submitted(TRANSFER, "name 1", "task 1")
    assert (known(log).task_id, known(log).state) == ("task 1", None)
    ended = log.ended(TRANSFER, known(log), SUCCEEDED, nbytes=1000, faults=0, s=1.5)
    assert ended == known(log)
    assert (ended.state, ended.site, ended.collection) == (SUCCEEDED, "polaris", "collection")
    first, _, last = journal.records
    assert (ended.began, ended.ended) == (first["time"], last["time"])
    assert last["submission_id"] == "name 1" and last["task_id"] == "task 1" and last["nbytes"] == 1000


def test_a_second_attempt_has_the_first_ones_beginning(journal: Journal):
    log = TransferLog(journal)
    log.submitting(TRANSFER, "name 1")
    log.ended(TRANSFER, known(log), "TransferFailed", reason="why")
    log.submitting(TRANSFER, "name 2")
    assert (known(log).submission_id, known(log).task_id, known(log).state) == ("name 2", None, None)
    assert known(log).began == journal.records[0]["time"]
    log.ended(TRANSFER, known(log), SUCCEEDED)
    log.submitting(TRANSFER, "name 3")
    assert known(log).began == journal.records[-1]["time"], "what is done once more begins anew"


def test_cleaning_forgets_what_lay_in_that_collection(journal: Journal):
    log = TransferLog(journal)
    other = dataclasses.replace(TRANSFER, key="k2", collection="another")
    third = dataclasses.replace(TRANSFER, key="k3", artifact="b" * 64)
    for transfer in (TRANSFER, other, third):
        log.submitting(transfer, "name")
    log.cleaned("polaris", "collection", ["a" * 64])
    assert log.find("k1") is None
    assert known(log, "k2").collection == "another"
    assert known(log, "k3").artifact == "b" * 64


def act(log: TransferLog, step: tuple[str, int]) -> None:
    kind, number = step
    transfer = dataclasses.replace(TRANSFER, key=f"k{number}", artifact=f"{number}" * 64)
    state = log.find(transfer.key)
    if kind == "submitting":
        log.submitting(transfer, f"name {len(log.journal.records)}")
    elif kind == "cleaned":
        log.cleaned("polaris", "collection", [transfer.artifact])
    elif state and kind == "submitted":
        log.submitted(transfer, state.submission_id, "task")
    elif state:
        log.ended(transfer, state, kind)


STEPS = st.tuples(
    st.sampled_from(["submitting", "submitted", SUCCEEDED, "TransferFailed", "cleaned"]), st.integers(1, 3)
)


@given(steps=st.lists(STEPS, max_size=25))
def test_the_next_driver_knows_what_the_last_one_knew(steps: list[tuple[str, int]], tmp_path_factory: Any):
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    log = TransferLog(Journal(path))
    for step in steps:
        act(log, step)
    log.journal.close()
    again = TransferLog(Journal(path))
    assert [again.find(f"k{number}") for number in (1, 2, 3)] == [log.find(f"k{number}") for number in (1, 2, 3)]
    again.journal.close()

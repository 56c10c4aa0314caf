"""Errors travel between processes whole, and say where and what to do."""

from __future__ import annotations

import copy
import pickle

import dill
import pytest

from apps import errors
from apps.errors import (
    ArtifactError,
    BlockTooShort,
    CrossfedError,
    RanksLost,
    StorageError,
    TrainingError,
    Unfinished,
    UpdateRefused,
    UserMistake,
    VersionMismatch,
)

KINDS = [
    CrossfedError, UserMistake, ArtifactError, UpdateRefused, VersionMismatch, StorageError, TrainingError, Unfinished,
    BlockTooShort, RanksLost,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "travel", [lambda e: pickle.loads(pickle.dumps(e)), lambda e: dill.loads(dill.dumps(e)), copy.copy]
)
def test_round_trip_keeps_every_field(kind, travel):
    error = kind("disk is full", site="aurora", round=3, file="/x/y.safetensors", remedy="Free space")
    other = travel(error)
    assert type(other) is kind
    assert vars(other) == vars(error)
    assert str(other) == str(error)


def test_text_has_place_file_and_remedy():
    error = ArtifactError("wrong size", site="aurora", round=0, file="/x/y", remedy="Fetch it again")
    assert str(error) == "site aurora, round 0: wrong size (/x/y). Fetch it again"


def test_text_without_a_place():
    assert str(ArtifactError("wrong size")) == "wrong size"
    assert str(ArtifactError("/x/y has the wrong size", file="/x/y")) == "/x/y has the wrong size"


def test_place_is_filled_in_once():
    error = UpdateRefused("not finite", site="aurora").at(site="server", round=2)
    assert (error.site, error.round) == ("aurora", 2)
    assert error.at(round=7).round == 2
    assert UpdateRefused("x", round=0).at(round=5).round == 0


def test_placed_fills_in_and_keeps_the_cause():
    with pytest.raises(StorageError) as caught, errors.placed("aurora", 4):
        raise StorageError("cannot write") from OSError("disk")
    assert (caught.value.site, caught.value.round) == ("aurora", 4)
    assert isinstance(caught.value.__cause__, OSError)


def test_every_kind_is_a_crossfed_error():
    assert all(issubclass(kind, CrossfedError) for kind in KINDS)
    assert not issubclass(UpdateRefused, ArtifactError)  # the one is not asked for again, the other is


def test_a_foreign_error_becomes_one_that_travels():
    class UnpicklableError(Exception):
        def __init__(self, what: str, cause: str) -> None:
            super().__init__(f"{what}\nbecause {cause}")

    with pytest.raises(errors.TaskError) as caught, errors.placed("polaris", 3):
        raise UnpicklableError("wrong shape", "of a bad file")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == "site polaris, round 3: UnpicklableError: wrong shape"

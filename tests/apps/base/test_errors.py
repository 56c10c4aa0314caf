"""Errors are unchanged after pickling, and say where and what to do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import dill
import pytest

from apps.base import errors
from apps.base.errors import (
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
    CrossfedError,
    UserMistake,
    ArtifactError,
    UpdateRefused,
    VersionMismatch,
    StorageError,
    TrainingError,
    Unfinished,
    BlockTooShort,
    RanksLost,
]


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
    assert (
        str(UserMistake("no site 'a', did you mean 'b'?", remedy="Name one"))
        == "no site 'a', did you mean 'b'? Name one"
    )


def test_text_without_a_place():
    assert str(ArtifactError("wrong size")) == "wrong size"
    assert str(ArtifactError("/x/y has the wrong size", file="/x/y")) == "/x/y has the wrong size"


def test_place_is_filled_in_once():
    error = UpdateRefused("not finite", site="aurora").at(site="server", round=2)
    assert (error.site, error.round) == ("aurora", 2)
    assert error.at(round=7).round == 2
    assert UpdateRefused("x", round=0).at(round=5).round == 0


def test_placed_fills_in_and_leaves_the_cause_in_the_log(caplog):
    with pytest.raises(StorageError) as caught, errors.placed("aurora", 4):
        raise StorageError("cannot write") from OSError("the disk of node 7")
    assert (caught.value.site, caught.value.round) == ("aurora", 4)
    assert caught.value.__cause__ is None and "the disk of node 7" in caplog.text


def test_every_kind_is_a_crossfed_error():
    assert all(issubclass(kind, CrossfedError) for kind in KINDS)
    assert not issubclass(UpdateRefused, ArtifactError)  # the one is not asked for again, the other is


WORKER = """
import sys
import parsl  # first, as in a worker: it changes how errors are pickled
from parsl.app.errors import wrap_error
from parsl.serialize import serialize
from apps.base.errors import StorageError, placed

class LibraryError(Exception):
    def __init__(self, what, cause):
        super().__init__(f"{what}\\nbecause {cause}")

def task():
    with placed("polaris", 3):
        foreign = LibraryError("wrong shape", "of a bad file")
        if sys.argv[1] == "alone":
            raise foreign
        raise StorageError("cannot read") from foreign

print(serialize(wrap_error(task)()).hex())
"""


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [("alone", errors.TaskError, "LibraryError: wrong shape"), ("as a cause", StorageError, "cannot read")],
)
def test_errors_of_libraries_do_not_prevent_ours_from_reaching_the_driver(raised, kind, text):
    from parsl.serialize import deserialize

    project = Path(errors.__file__).parents[2]
    worker = subprocess.run(
        [sys.executable, "-c", WORKER, raised],
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    with pytest.raises(kind) as caught:
        deserialize(bytes.fromhex(worker.stdout)).reraise()
    assert str(caught.value) == f"site polaris, round 3: {text}"
    assert "because of a bad file" in worker.stderr  # all of it is in the worker's log


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one line", "one line"),
        ("  first\n\n second ", "first"),
        ("", "no details"),
        (
            "Couldn't instantiate the backend tokenizer from one of: \n(1) a serialization file, \n(2) a slow tokenizer"
            " to convert or \n(3) an equivalent class. \nYou need to have sentencepiece installed.",
            "Couldn't instantiate the backend tokenizer from one of: (1) a serialization file, (2) a slow tokenizer to"
            " convert or (3) an equivalent class.",
        ),
        (
            "Error(s) in loading state_dict for Net:\n\tsize mismatch for w",
            "Error(s) in loading state_dict for Net: size mismatch for w",
        ),
        ("ends with a colon:\n", "ends with a colon"),
        ("word " * 100, "word " * 60 + "..."),
    ],
)
def test_the_main_line_of_an_error_of_many_lines(text: str, line: str) -> None:
    assert errors.main_line(ValueError(text)) == line

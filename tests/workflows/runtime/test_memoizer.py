"""Parsl remembers finished tasks through the journal, and only as long as their artifacts are there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor

from apps.artifacts.store import Artifact
from apps.transfer import removable
from workflows.records.journal import Journal
from workflows.runtime.memoizer import JournalMemoizer, still_there

CALLS: list[int] = []
ABC, DEF = "abc" + "0" * 61, "def" + "0" * 61  # names of artifacts
PLACE = {"site": "polaris", "round": 2}


def double(place: dict, number: int) -> dict[str, Any]:
    CALLS.append(number)
    return {"double": 2 * number, "started": 1.0, "ended": 2.0}


def refuse(place: dict, number: int) -> None:
    CALLS.append(number)
    raise ValueError("no")


def stored(place: dict, folder: str) -> dict[str, Any]:
    (Path(folder) / f"{ABC}.safetensors").write_bytes(b"12345")
    CALLS.append(5)
    return {"artifact": Artifact(sha256=ABC, nbytes=5, kind="model"), "store": folder}


def stored_again(place: dict, folder: str) -> dict[str, Any]:
    return stored(place, folder)


@pytest.fixture
def call(tmp_path: Path):
    """Calls a function as a remembered app, each time under a fresh Parsl that has only the journal."""
    CALLS.clear()

    def _call(function: Any, *args: Any) -> Any:
        journal = Journal(tmp_path / "journal.jsonl")
        config = Config(
            executors=[ThreadPoolExecutor()],
            memoizer=JournalMemoizer(journal),
            run_dir=str(tmp_path / "parsl"),
            initialize_logging=False,
            usage_tracking=0,
            strategy="none",
        )
        with parsl.load(config) as kernel:
            future = parsl.python_app(function, data_flow_kernel=kernel, cache=True)(PLACE, *args)
            error = future.exception()
        parsl.clear()
        journal.close()
        return error or future.result()

    return _call


def test_a_result_is_remembered_over_drivers(call, tmp_path: Path) -> None:
    before = time.time()
    assert call(double, 4) == call(double, 4) == {"double": 8, "started": 1.0, "ended": 2.0}
    assert CALLS == [4]
    (record,) = Journal(tmp_path / "journal.jsonl").events("task_done")
    assert (record["app"], record["site"], record["round"], record["started"]) == ("double", "polaris", 2, 1.0)
    assert before <= record["submitted"] <= time.time()


def test_other_arguments_are_another_task(call) -> None:
    call(double, 4)
    call(double, 5)
    assert CALLS == [4, 5]


def test_a_failure_is_tried_again(call) -> None:
    assert isinstance(call(refuse, 1), ValueError) and isinstance(call(refuse, 1), ValueError)
    assert CALLS == [1, 1]


def test_a_result_whose_artifact_is_gone_or_cut_off_is_made_again(call, tmp_path: Path) -> None:
    store = str(tmp_path)
    call(stored, store)
    call(stored, store)
    assert CALLS == [5]
    (tmp_path / f"{ABC}.safetensors").write_bytes(b"123")
    call(stored, store)
    assert CALLS == [5, 5]
    (tmp_path / f"{ABC}.safetensors").unlink()
    call(stored, store)
    assert CALLS == [5, 5, 5]


def forget(_place: dict, *files: Any) -> None:
    """Deletes as the app of that name does; its answer does not reach the driver."""
    for store, removed in removable(*files).items():
        for sha256 in removed:
            (Path(store) / f"{sha256}.safetensors").unlink(missing_ok=True)
    raise ValueError("killed")


def test_what_was_deleted_on_purpose_is_not_made_again(call, tmp_path: Path) -> None:
    """Not even where the driver was killed before it heard that the file is gone."""
    store = tmp_path / "artifacts"
    store.mkdir()
    made = call(stored, str(store))
    call(forget, str(store), str(tmp_path / "out"), {"artifact": {"sha256": DEF}}, made, {"artifact": {"sha256": DEF}})
    assert call(stored, str(store)) == made
    assert CALLS == [5] and not (store / f"{ABC}.safetensors").exists()
    sent, fetched = Journal(tmp_path / "journal.jsonl").events("tidying")
    assert (sent["store"], sent["removed"]) == (str(store), [ABC])
    assert (fetched["store"], fetched["removed"]) == (str(tmp_path / "out"), [DEF])


def test_what_is_brought_back_after_it_was_deleted_must_be_there_again(call, tmp_path: Path) -> None:
    store = tmp_path / "artifacts"
    store.mkdir()
    made = call(stored, str(store))
    call(forget, str(store), str(tmp_path / "out"), {"artifact": {"sha256": DEF}}, made, {"artifact": {"sha256": DEF}})
    again = call(stored_again, str(store))
    (store / f"{ABC}.safetensors").unlink()
    assert call(stored_again, str(store)) == again
    assert CALLS == [5, 5, 5]


def test_a_store_out_of_sight_is_believed(tmp_path: Path) -> None:
    result = {"artifact": {"sha256": ABC, "nbytes": 3, "kind": "model"}, "store": "/far/away"}
    assert still_there(result, unseen={"/far/away"}) and not still_there(result)


def test_results_without_artifact_need_none() -> None:
    assert still_there(3) and still_there({"samples": 3})


def test_the_state_of_a_server_rule_counts_as_well(tmp_path: Path) -> None:
    def artifact(name: str) -> dict[str, Any]:
        return {"sha256": name, "nbytes": 3, "kind": "model"}

    result = {"artifact": artifact(ABC), "state": artifact(DEF), "store": str(tmp_path)}
    (tmp_path / f"{ABC}.safetensors").write_bytes(b"123")
    assert not still_there(result) and still_there({**result, "state": None})
    (tmp_path / f"{DEF}.safetensors").write_bytes(b"123")
    assert still_there(result)

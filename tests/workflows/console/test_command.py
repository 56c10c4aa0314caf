"""The messages of a stopped campaign, by kind of site."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workflows.records.journal import Journal
from workflows.runtime.stopping import interruption, stopped


def plan(**routes: str) -> Any:
    sites = {
        name: SimpleNamespace(name=name, route=route, own_block=object() if route == "batch" else None)
        for name, route in routes.items()
    }
    return SimpleNamespace(sites=sites, machines=sites)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ({"here": "local"}, "Interrupted; the workers on this machine have ended"),
        ({"polaris": "batch", "aurora": "batch"}, "Interrupted; the batch jobs of polaris, aurora are cancelled"),
        ({"polaris": "globus"}, "Interrupted"),
        (
            {"polaris": "globus", "here": "local", "aurora": "batch"},
            "Interrupted; the workers on this machine have ended; the batch jobs of aurora are cancelled",
        ),
    ],
)
def test_the_message_of_ctrl_c_by_kind_of_site(routes: dict[str, str], words: str) -> None:
    assert interruption(plan(**routes)) == words


def test_nothing_has_ended_before_the_start() -> None:
    assert interruption(None) == "Interrupted"


def test_tasks_left_by_earlier_drivers_are_not_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    run: Any = SimpleNamespace(journal=journal, path=tmp_path)
    journal.write("driver_started")
    journal.write("tasks_left", site="aurora", tasks=1)  # an earlier driver's
    journal.write("driver_started")
    journal.write("tasks_left", site="polaris", tasks=2)
    assert stopped(run, "\nInterrupted", 130) == 130
    told = capsys.readouterr().err
    assert "What runs at polaris continues, what queues there keeps its place: a resume uses both." in told
    assert "aurora" not in told and "cancelled" not in told and f"--resume {tmp_path}" in told
    assert journal.records[-1]["reason"] == "Interrupted"
    journal.close()

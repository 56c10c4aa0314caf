"""Progress that a driver reads from the storage of sites: only what is progress, with its age on this host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from workflows.reporting.display import phase_text
from workflows.runtime import progress_files
from workflows.runtime.progress_files import ProgressFiles

PROGRESS: dict[str, Any] = {
    "task_id": "0" * 32,
    "round": 2,
    "phase": "training",
    "step": 31,
    "steps": 150,
    "loss": None,
    "tokens_per_s": 0.0,
    "time": 1_790_000_900.0,
}


def test_progress_has_the_age_that_this_host_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks of a facility differ; what counts is when the driver has seen something new."""
    now = [1_790_000_000.0]
    monkeypatch.setattr(progress_files.time, "time", lambda: now[0])
    files, path = ProgressFiles({"alpha": tmp_path}), tmp_path / "progress.json"
    assert files.read("alpha") is None and files.seen_at("alpha") is None
    path.write_text(json.dumps(PROGRESS))
    assert files.read("alpha") == PROGRESS and files.seen_at("alpha") == now[0]
    now[0] += 720
    assert files.read("alpha") == PROGRESS and files.seen_at("alpha") == now[0] - 720
    text: Any = phase_text("training", PROGRESS, seen_at=files.seen_at("alpha"))  # type: ignore[arg-type]
    assert text == "round 2: step 31 of 150, 12 min ago"
    path.write_text(json.dumps({**PROGRESS, "step": 32}))
    assert files.read("alpha") == {**PROGRESS, "step": 32} and files.seen_at("alpha") == now[0]
    path.unlink()
    path.mkdir()  # a storage that fails is no reason to end the driver
    assert files.read("alpha") is None
    path.rmdir()
    os.mkfifo(path)  # nor is one that would be waited for
    assert files.read("alpha") is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1, 2]", "5", "null", "[" * 4000, "x" * 100_000),
        *(
            json.dumps({**PROGRESS, **changes})
            for changes in (
                *({"step": "x"}, {"step": -5}, {"step": 10**12, "steps": 1}, {"step": 10**12, "steps": 10**12 + 1}),
                *({"loss": "x"}, {"loss": float("nan")}, {"loss": 1e300}, {"loss": True}, {"tokens_per_s": None}),
                *({"phase": "\x1b]0;OWNED\x07"}, {"round": 1.5}, {"time": 1e300}, {"more": 1}, {"task_id": "../x"}),
            )
        ),
        json.dumps({name: value for name, value in PROGRESS.items() if name != "steps"}),
        json.dumps(PROGRESS).replace("31", "1" * 5000),
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_progress_is_noted_once_and_not_shown(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = ProgressFiles({"alpha": tmp_path})
    (tmp_path / "progress.json").write_text(text)
    assert [files.read("alpha"), files.read("alpha")] == [None, None]
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["site alpha"]
    assert all(len(record.getMessage()) < 300 for record in caplog.records)

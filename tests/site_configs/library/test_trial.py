"""Tests of Slurm's verdict on a job that is not submitted, with an sbatch that is a script."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from site_configs.library.providers import SlurmBlocks
from site_configs.library.resolve import available
from site_configs.library.site import Block, Queue
from site_configs.library.trial import Verdict, try_out

BLOCK = Block("slurm", Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide"), 2, 5400, "ABC")
PROMISE = "to start at 2026-11-23T04:00:00 using 112 processors on nodes nid[0001-0002] in partition small"


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes an sbatch which records its arguments and its script and prints one answer."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(error: str = "", code: int = 0, out: str = "", sleep_s: float = 0) -> None:
        lines = [
            "#!/bin/bash",
            f'echo "$*" > {tmp_path}/arguments',
            f'cp "${{@: -1}}" {tmp_path}/script',
            f"sleep {sleep_s}",
            f"printf '%s' '{out}'",
            f"printf '%s' '{error}' >&2",
            f"exit {code}",
        ]
        (tmp_path / "sbatch").write_text("\n".join(lines))
        (tmp_path / "sbatch").chmod(0o755)

    return make


def provider(folder: Path, **options: Any) -> SlurmBlocks:
    made = SlurmBlocks(BLOCK, job_prefix="cf-RUN", directives=("--partition=small",), **options)
    made.script_dir = str(folder / "submit_scripts")
    return made


def test_what_is_tried_is_the_script_that_would_be_submitted(sbatch: Any, tmp_path: Path) -> None:
    sbatch(f"sbatch: Job 8815 {PROMISE}\n")
    tried = provider(tmp_path)
    assert try_out(tried, "pool --here") == Verdict(PROMISE, None)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[0] == "--test-only" and len(arguments) == 2
    tried.script_dir = str(Path(arguments[1]).parent)
    submitted = (
        tried.render("pool --here").replace("cf-RUN-NUMBER", Path(arguments[1]).name).partition("# submitted")[0]
    )
    script = (tmp_path / "script").read_text()
    assert script.split() == submitted.split()
    assert "pool --here" in script and not Path(arguments[1]).exists() and not (tmp_path / "submit_scripts").exists()
    assert tried.resources == {}


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            "allocation failure: Invalid account or account/partition combination specified\n",
            "allocation failure: Invalid account or account/partition combination specified",
        ),
        ("sbatch: error: invalid partition specified: gpu\n", "invalid partition specified: gpu"),
        (
            "sbatch: error: QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates accounting/QOS policy\n",
            "QOSMaxWallDurationPerJobLimit allocation failure: Job violates accounting/QOS policy",
        ),
        ("", "sbatch --test-only ended with 1"),
    ],
)
def test_a_refusal_has_slurms_message(sbatch: Any, tmp_path: Path, error: str, problem: str) -> None:
    sbatch(error, code=1)
    assert try_out(provider(tmp_path), "pool") == Verdict("", problem)


def test_an_sbatch_that_prints_no_start(sbatch: Any, tmp_path: Path) -> None:
    sbatch("sbatch: your job has been admitted\n")
    assert try_out(provider(tmp_path), "pool") == Verdict("", None)


def test_slurm_that_does_not_answer(sbatch: Any, tmp_path: Path) -> None:
    sbatch(sleep_s=30)
    verdict = try_out(provider(tmp_path, command_timeout_s=1), "pool")
    assert verdict.problem is not None
    assert verdict.problem.startswith("Slurm does not answer: sbatch did not answer in 1 s")


def test_the_module_is_not_a_machine() -> None:
    assert "trial" not in available()

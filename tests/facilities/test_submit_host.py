"""Tests that an agent's commands reach the cluster as its users' commands do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from facilities.globus.agents import as_nobody
from facilities.globus.reaper import VARIABLE
from facilities.globus.submit_host import COMMANDS, submit_host

if TYPE_CHECKING:
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.globus, pytest.mark.slurm]


def test_a_job_is_its_users_and_not_the_agents(slurm_site: SlurmCluster, tmp_path: Path) -> None:
    own = {**os.environ, **submit_host(tmp_path / "host", slurm_site), VARIABLE: "an agent's", "OTHER": "kept"}

    def called(*command: str) -> str:
        whole = [*as_nobody(), *command]
        return subprocess.run(whole, env=own, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nid -u\npwd\necho ${{{VARIABLE}-unset}} $OTHER\nsleep 600\n")
    job = called("sbatch", "--parsable", "--output=words", str(script)).strip()
    slurm_site.wait_for_state(job, "RUNNING")
    assert called("squeue", "--noheader", "--format=%i %t", "--job", job).split() == [job, "R"]
    assert called("sacct", "-X", "--noheader", "--format=jobid", "--job", job).split() == [job]
    called("scancel", job)
    slurm_site.wait_for_state(job, "CANCELLED")
    assert (tmp_path / "words").read_text().splitlines()[:3] == [str(os.getuid()), str(tmp_path), "unset kept"]


def test_a_refusal_is_passed_on(slurm_site: SlurmCluster, tmp_path: Path) -> None:
    host = submit_host(tmp_path, slurm_site)
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == sorted(COMMANDS)
    command = [*as_nobody(), "sbatch", "--partition=none such", "--wrap", "true"]
    ended = subprocess.run(
        command, env={**os.environ, **host}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and "invalid partition" in ended.stderr

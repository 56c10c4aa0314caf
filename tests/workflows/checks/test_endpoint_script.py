"""The batch script that a dry run shows of a site behind Globus: what its endpoint would write."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from campaigns import run, write_campaign

from site_configs.library.resolve import resolve_site
from site_configs.library.site import Site
from workflows.checks.endpoint_script import endpoint_script, rendered
from workflows.setup_site import NO_ENDPOINT_YET


def site_of(machine: str, **settings: Any) -> Site:
    known = {"route": "globus", "carrier": "copy", "endpoint": NO_ENDPOINT_YET, "python_env": "/project/env"}
    return resolve_site("far", machine, Path("/runs/r"), {**known, **settings})


def test_a_pbs_script() -> None:
    site = site_of("polaris", account="ABC", storage_root="/eagle/ABC/cf", nodes=2, walltime="90m")
    script = endpoint_script(site).splitlines()
    for line in ("#PBS -l walltime=1:30:00", "#PBS -l select=2:ncpus=64:ngpus=4:system=polaris"):
        assert line in script
    assert "export CROSSFED_BLOCK_END=$(($(date +%s) + 5400))" in script
    assert "export PATH=/project/env/bin:/project/globus-agent/bin:$PATH" in script
    assert script[-1] == "# submitted with: qsub  -q capacity -A ABC submit_scripts/parsl.NUMBER"


def test_a_slurm_script_and_no_scheduler_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run starts nothing")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    site = site_of(
        "slurm",
        account="abc",
        partition="gpu",
        storage_root="/data/cf",
        nodes=3,
        walltime="90m",
        cores=16,
        gpus=2,
        setup="module load cuda; echo '{{ x }}'",
    )
    script = endpoint_script(site).splitlines()
    for line in ("--nodes=3", "--time=90", "--account=abc", "--partition=gpu", "--gpus-per-node=2"):
        assert f"#SBATCH {line}" in script
    assert "module load cuda; echo '{{ x }}'" in script  # Jinja leaves the site's own lines alone
    assert script[-1] == "# submitted with: sbatch submit_scripts/parsl.NUMBER"


def test_values_are_those_of_the_campaign_not_of_the_template() -> None:
    site = site_of("frontier", account="ABC", storage_root="/lustre/orion/abc/cf", walltime="6h")
    provider = rendered(site)["engine"]["provider"]
    assert (provider["account"], provider["partition"], provider["walltime"]) == ("ABC", "extended", "6:00:00")


def test_a_machine_without_a_scheduler_shows_what_starts_its_workers() -> None:
    script = endpoint_script(site_of("local", storage_root="/data/cf", threads=2))
    assert "export OMP_NUM_THREADS=2" in script and "#SBATCH" not in script and "process_worker_pool" in script


def test_a_dry_run_prints_it_with_its_condition(tmp_path: Path) -> None:
    far = {
        "config": "polaris",
        "route": "globus",
        "carrier": "copy",
        "endpoint": NO_ENDPOINT_YET,
        "python_env": "/eagle/ABC/env",
        "account": "ABC",
        "storage_root": "/eagle/ABC/cf",
        "nodes": 2,
        "walltime": "2h",
        "tasks": ["chemical_reaction"],
        "data": "/eagle/ABC/records",
    }
    shown = run(tmp_path, write_campaign(tmp_path, sites={"far": far}), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert (
        f"endpoint {NO_ENDPOINT_YET} is sent with each task: account=ABC, queue=capacity, nodes=2, walltime_s=7200"
        in shown.stdout
    )
    assert "# if it uses the template that setup_site.py writes, a block's script is\n#!/bin/bash" in shown.stdout
    assert "#PBS -l select=2:ncpus=64" in shown.stdout

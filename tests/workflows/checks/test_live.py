"""``--check --live``: this machine's storage and environments, and schedulers."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from batch_sites import pbs_entry, slurm_entry

from apps.base.versions import Comparison, code_version
from apps.site import storage_problem
from site_configs.library.resolve import resolve_site
from site_configs.library.site import Site
from site_configs.local import site as local_site
from workflows.checks import live as live_checks
from workflows.checks.here import reach_problem
from workflows.checks.live import check_environment, check_live

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster


def test_storage_is_created_and_left_clean(tmp_path: Path) -> None:
    assert storage_problem(tmp_path / "a" / "b") is None
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert storage_problem(tmp_path / "file" / "b") == f"Not a directory ({tmp_path / 'file' / 'b'})"


def here(tmp_path: Path, **changes: Any) -> Site:
    return dataclasses.replace(local_site("alpha", tmp_path), **changes)


def problem_of(site: Site) -> str | None:
    return check_environment(site)[0].problem


def test_the_drivers_own_environment_has_no_problem(tmp_path: Path) -> None:
    assert problem_of(here(tmp_path)) is None


def fake_python(folder: Path, body: str) -> Path:
    """Make an environment whose python is a shell script."""
    program = folder / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    for path in (program, program.parent / "process_worker_pool.py"):
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return folder / "env"


def test_a_missing_environment_or_one_without_parsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = problem_of(here(tmp_path, python_env=tmp_path / "nowhere"))
    assert nowhere == f"python_env: there is no {tmp_path}/nowhere/bin/python"
    bare = fake_python(tmp_path, "true")
    (bare / "bin" / "process_worker_pool.py").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = problem_of(here(tmp_path, python_env=bare))
    assert found == "no process_worker_pool.py on PATH: this environment has no Parsl"


def test_the_last_line_of_the_setup_is_reported(tmp_path: Path) -> None:
    found, lines = check_environment(here(tmp_path, setup="module_that_is_not_there"))
    assert found.problem is None and lines.endswith("module_that_is_not_there: command not found")


def test_other_versions_at_the_site_are_reported(tmp_path: Path) -> None:
    edits = """s/"torch": "[^"]*"/"torch": "2.9"/; s/"crossfed": "[^"]*"/"crossfed": "0"/"""
    changed = f"{sys.executable} \"$@\" | sed '{edits}'"
    problem = problem_of(here(tmp_path, python_env=fake_python(tmp_path, changed)))
    assert problem == f"its crossfed code is 0, the driver's {code_version()}: use one commit"


@pytest.mark.parametrize(
    ("setup", "problem"),
    [
        ("echo loading; echo 'no such module: cuda/99' >&2; exit 3", "no such module: cuda/99"),
        ("exit 3", "its set-up ends without any output"),
        ("python() { return 0; }", "its set-up ends without any output"),
        ("python() { echo Python 2.7; }", "its python printed no versions, but 'Python 2.7'"),
        ("python() { echo 7; }", "its python printed no versions, but '7'"),
    ],
)
def test_a_setup_that_breaks_python(tmp_path: Path, setup: str, problem: str) -> None:
    assert problem in (problem_of(here(tmp_path, setup=setup)) or "")


def test_an_environment_without_the_project(tmp_path: Path) -> None:
    alone = fake_python(tmp_path, f'exec {sys.executable} -I -S "$@"')  # with the standard library alone
    assert problem_of(here(tmp_path, python_env=alone)) == "ModuleNotFoundError: No module named 'apps'"


def test_a_setup_may_print_and_fail_in_parts(tmp_path: Path) -> None:
    """A job continues after such lines as well."""
    assert problem_of(here(tmp_path, setup="echo hello; false\nmodule_that_is_not_there")) is None


def test_a_setup_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*words: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(live_checks.subprocess, "run", slow)
    assert problem_of(here(tmp_path)) == "its set-up takes more than 300 s"


# -- the live check ---------------------------------------------------------------------------------------------

Ask = Callable[[Site], tuple[bool, list[str]]]


def live(site: Site) -> tuple[bool, list[str]]:
    """Return whether there is no problem, and the lines."""
    lines: list[str] = []
    store = {"store": "runs/not_there/artifacts"}
    plan: Any = SimpleNamespace(sites={site.name: site}, server_work=store, server_blocks=[])
    return check_live(plan, lines.append), lines


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Return the live check without the environment, which has its own tests."""
    monkeypatch.setattr(live_checks, "check_environment", lambda _: (Comparison(None), ""))
    return live


def slurm_alpha(cluster: SlurmCluster, folder: Path, **settings: Any) -> Site:
    entry = slurm_entry(cluster, folder / "storage", **{"partition": "regular", "account": "fusion", **settings})
    return resolve_site("alpha", entry.pop("config"), folder / "run", entry)


def pbs_alpha(facility: PbsFacility, folder: Path, **settings: Any) -> Site:
    entry = pbs_entry(facility, folder / "storage", **{"queue": "debug", "account": "fusion", **settings})
    return resolve_site("alpha", entry.pop("config"), folder / "run", entry)


@pytest.mark.parametrize(
    ("config", "missing"),
    [("slurm", "sbatch, squeue, scancel are"), ("pbs", "qsub, qstat, qselect, qdel are")],
)
def test_a_host_without_the_schedulers_commands(quick: Ask, tmp_path: Path, config: str, missing: str) -> None:
    (tmp_path / "bin").mkdir()
    settings = {"storage_root": str(tmp_path), "command_environment": {"PATH": str(tmp_path / "bin")}}
    site = resolve_site("alpha", config, tmp_path / "run", settings | {"address": "127.0.0.1"})
    assert reach_problem(site) == (
        f"sites.alpha: {missing} not on PATH: start on a login node of {site.machine},"
        " or reach it through Globus (sites.alpha.route=globus)"
    )
    fine, lines = quick(site)
    assert not fine and len(problems(lines)) == 1 and "the scheduler's commands are here: sites.alpha" in lines[0]
    assert reach_problem(local_site("alpha", tmp_path)) is None


def with_limit(site: Site, jobs: int) -> Site:
    assert site.block is not None
    queue = dataclasses.replace(site.block.queue, queued_per_user=jobs, source="a guide")
    return dataclasses.replace(site, block=dataclasses.replace(site.block, queue=queue))


def problems(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("PROBLEM")]


def test_a_site_on_this_machine_has_two_checks(quick: Ask, tmp_path: Path) -> None:
    fine, lines = quick(here(tmp_path))
    assert fine and [line[:15] for line in lines] == ["ok       alpha:"] * 2


def test_an_interface_that_this_host_lacks(quick: Ask, tmp_path: Path) -> None:
    site = resolve_site("alpha", "slurm", tmp_path, {"storage_root": str(tmp_path), "driver_interface": "hsn99"})
    fine, lines = quick(site)
    line = lines[-1]
    assert not fine and line.startswith("PROBLEM  alpha: its compute nodes can connect to an address of this host: ")
    assert "no network interface 'hsn99'" in line and "or set sites.alpha.address" in line


@pytest.mark.slurm
def test_slurm_without_problems(tmp_path: Path, slurm_site: SlurmCluster) -> None:
    fine, lines = live(slurm_alpha(slurm_site, tmp_path))
    assert fine, lines
    words = [re.sub("T[0-9:]+ using .*", "", line.partition("alpha: ")[2]) for line in lines]
    assert words == [
        "queue regular takes jobs",
        "account fusion is valid",
        "my jobs in regular: 0",
        f"Slurm would take its job, to start at {date.today()}",
        f"storage {tmp_path / 'storage' / 'run' / 'alpha'} can be written",
        "Python, packages and code in its jobs fit those of the driver",
        "its compute nodes can connect to an address of this host",
    ]


@pytest.mark.slurm
def test_the_default_partition_has_no_name(quick: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    fine, lines = quick(slurm_alpha(slurm_site, tmp_path, partition="", account=""))
    assert fine and lines[0] == "ok       alpha: my jobs in all queues: 0"


@pytest.mark.slurm
def test_slurm_with_a_wrong_account(quick: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    fine, lines = quick(slurm_alpha(slurm_site, tmp_path, account="fission"))
    problem, refused = problems(lines)
    assert not fine and "account fission is valid: account fission is not yours on shared; yours are: " in problem
    assert "fusion" in problem and "Slurm would take its job: " in refused and "Invalid account" in refused


@pytest.mark.slurm
def test_slurm_with_a_closed_and_an_unknown_partition(quick: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    slurm_site.set_partition("regular", "drain")
    try:
        fine, lines = quick(slurm_alpha(slurm_site, tmp_path))
    finally:
        slurm_site.set_partition("regular", "up")
    closed, refused = problems(lines)
    assert not fine and closed.endswith("queue regular takes jobs: partition regular is draining: it takes no jobs")
    assert refused.startswith("PROBLEM  alpha: Slurm would take its job: allocation failure: ")
    fine, lines = quick(slurm_alpha(slurm_site, tmp_path, partition="gpu"))
    unknown, refused = problems(lines)
    assert not fine and "there is no partition or QOS gpu" in unknown
    assert "Slurm would take its job: " in refused and "invalid partition specified: gpu" in refused


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "debug", "walltime": "45m"}, "Requested time limit is invalid"),
        ({"partition": "debug", "nodes": 2}, "Node count specification invalid"),
        ({"qos": "express"}, "Invalid qos specification"),
        ({"options": ["--constraint=h100"]}, "Invalid feature specification"),
    ],
)
def test_requests_that_only_slurm_itself_can_refuse(
    quick: Ask, tmp_path: Path, slurm_site: SlurmCluster, settings: dict[str, Any], words: str
) -> None:
    before = set(slurm_site.jobs())
    fine, lines = quick(slurm_alpha(slurm_site, tmp_path, **settings))
    (problem,) = problems(lines)
    assert not fine and problem.startswith("PROBLEM  alpha: Slurm would take its job: ") and words in problem
    assert set(slurm_site.jobs()) <= before  # nothing was submitted


@pytest.mark.slurm
def test_slurm_with_a_full_queue_and_unusable_storage(quick: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    for _ in range(2):
        slurm_site.submit("sleep 60", "--partition=regular", "--hold")
    site = with_limit(slurm_alpha(slurm_site, tmp_path), 2)
    (tmp_path / "storage").touch()
    fine, lines = quick(site)
    full, storage = problems(lines)
    assert not fine and "my jobs in regular: 2: regular takes 2 jobs of a user (a guide, " in full
    assert storage.endswith(f"can be written: Not a directory ({site.storage_root})")
    assert quick(with_limit(site, 3))[1][2] == "ok       alpha: my jobs in regular: 2"


@pytest.mark.slurm
def test_pbs_without_problems_and_with_a_full_queue(quick: Ask, tmp_path: Path, pbs_site: PbsFacility) -> None:
    site = pbs_alpha(pbs_site, tmp_path)
    fine, lines = quick(site)
    assert fine, lines
    pbs_site.submit("sleep 60", "-q", "debug", "-A", "fusion", "-l", "filesystems=home", "-l", "walltime=60", "-h")
    fine, lines = quick(with_limit(site, 1))
    assert not fine and "my jobs in debug: 1: debug takes 1 job of a user" in problems(lines)[0]


@pytest.mark.slurm
def test_pbs_with_a_closed_and_an_unknown_queue_and_a_server_that_is_down(
    quick: Ask, tmp_path: Path, pbs_site: PbsFacility
) -> None:
    pbs_site.set_queue("debug", enabled=False)
    try:
        fine, lines = quick(pbs_alpha(pbs_site, tmp_path))
    finally:
        pbs_site.set_queue("debug")
    assert not fine and "queue debug takes no jobs (enabled = False)" in problems(lines)[0]
    assert "there is no queue nope" in problems(quick(pbs_alpha(pbs_site, tmp_path, queue="nope"))[1])[0]
    pbs_site.stop_server()
    try:
        fine, lines = quick(pbs_alpha(pbs_site, tmp_path))
    finally:
        pbs_site.start_server()
    assert not fine and [line.partition("alpha: ")[2][:30] for line in problems(lines)] == [
        "queue debug takes jobs: PBS do",
        "my jobs: the scheduler does no",
    ]

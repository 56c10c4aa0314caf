"""The batch scripts and commands of ``--dry-run``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from site_configs.local import site as local_site
from workflows.checks.batch_scripts import dry_run
from workflows.planning.plan import Plan


@pytest.fixture(scope="module")
def parts(llama: Plan, run_dir: Path) -> dict[str, str]:
    """Return the text of each site."""
    text = "\n".join(dry_run(llama, run_dir))
    found = text.split(f"\n# {'=' * 20} ")
    assert found[0] == ""
    return {part.partition(":")[0]: part for part in found[1:]}


def test_every_machine_is_printed_in_order(parts: dict[str, str]) -> None:
    assert list(parts) == ["perlmutter", "polaris", "aurora", "frontier"]
    assert [part.splitlines()[0].partition(": ")[2] for part in parts.values()] == [
        "Perlmutter (NERSC)",
        "Polaris (ALCF)",
        "Aurora (ALCF)",
        "Frontier (OLCF)",
    ]


def test_each_part_has_the_script_the_submission_and_the_launch(parts: dict[str, str], run_dir: Path) -> None:
    scripts = run_dir / "parsl" / "000" / "submit_scripts"
    for name, part in parts.items():
        command = "sbatch " if name in ("perlmutter", "frontier") else "qsub "
        (submitted,) = [line for line in part.splitlines() if line.startswith("# submitted with: ")]
        assert submitted.startswith(f"# submitted with: {command}") and submitted.endswith(f"{scripts}/cf-RUN-NUMBER")
        assert "\n#!/bin/bash\n" in part and "ADDRESS and PORT are filled in when the campaign starts" in part
        (pool,) = [line for line in part.splitlines() if line.startswith("process_worker_pool.py")]
        assert "-a ADDRESS" in pool and "--port=PORT" in pool and "--max_workers_per_node=1" in pool
        assert f"--cert_dir {run_dir}/parsl/000/{name}/certificates" in pool


def test_the_requests_are_those_of_the_machines(parts: dict[str, str]) -> None:
    assert "#SBATCH --nodes=2" in parts["perlmutter"] and "#SBATCH --account=ABC_g" in parts["perlmutter"]
    assert "#SBATCH --partition=" in parts["frontier"] and "#SBATCH --gpus-per-node=8" in parts["frontier"]
    assert "#PBS -l select=2:ncpus=64:ngpus=4:system=polaris" in parts["polaris"]
    assert "-A ABC " in parts["aurora"] and "#PBS -l filesystems=home:flare" in parts["aurora"]


@pytest.mark.parametrize(
    ("site", "launch"),
    [
        ("perlmutter", "srun --nodes=2 --ntasks=8"),
        ("polaris", "mpiexec -n 8 --ppn 4"),
        ("aurora", "mpiexec -n 24 --ppn 12"),
        ("frontier", "srun --nodes=2 --ntasks=16"),
    ],
)
def test_how_training_is_started(parts: dict[str, str], site: str, launch: str) -> None:
    (line,) = [line for line in parts[site].splitlines() if line.startswith("# training: ")]
    assert line.startswith(f"# training: {launch} ") and line.endswith("python -m apps.rank START")


def test_the_memory_plan_of_each_machine(parts: dict[str, str]) -> None:
    ranks = {"perlmutter": 4, "polaris": 4, "aurora": 12, "frontier": 8}
    for name, part in parts.items():
        (plan,) = [line for line in part.splitlines() if line.startswith(f"# memory {name} ")]
        assert f"2 nodes x {ranks[name]} ranks" in plan
        assert "per rank: weights" in part and "samples/s of 512 tokens" in part


def test_the_block_ends_where_its_walltime_does(parts: dict[str, str], llama: Plan) -> None:
    for name, part in parts.items():
        block = llama.sites[name].block
        assert block is not None
        assert f"export CROSSFED_BLOCK_END=$(($(date +%s) + {block.walltime_s}))" in part


def test_printing_writes_no_file(parts: dict[str, str], run_dir: Path) -> None:
    assert len(parts) == 4 and not run_dir.exists()


def test_a_site_on_this_machine_is_a_command(tmp_path: Path) -> None:
    work = {"parallel": {"nodes": 1, "ranks_per_node": 1}}
    sites = {"a": local_site("a", tmp_path)}
    plan: Any = SimpleNamespace(sites=sites, site_work={"a": work}, memory={}, server_blocks=[])
    text = "\n".join(dry_run(plan, tmp_path / "run"))
    assert "# started on this machine\n" in text and "-m workflows.runtime.fork_server" in text
    assert "#SBATCH" not in text
    assert text.endswith("# training: in the worker itself, one rank") and not (tmp_path / "run").exists()

"""Device, memory and time of the places where the server's work runs, asked for before anything starts."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from campaigns import nano, run, write_campaign

from workflows.checks import places
from workflows.checks.host_memory import MemoryLimit, memory_limit
from workflows.checks.places import place_lines, place_problems
from workflows.planning.campaign_file import check_campaign, settle_dtype
from workflows.planning.evaluation import evaluation_sum
from workflows.planning.plan import Plan, make_plan

LLAMA = {"source": "meta-llama/Llama-2-7b-hf", "dtype": "float32"}
CLUSTER = {"config": "slurm", "storage_root": "/scratch", "cores": 32, "memory_gb": 256, "command_environment": {}}
SITES = {"far": {**CLUSTER, "gpus": 4, "gpu_memory_gb": 40, "ranks_per_node": 4, "nodes": 4}}
HOST = MemoryLimit(64_000_000_000, "a test")


def plan(tmp_path: Path, **changes: Any) -> Plan:
    """Return the reference study's model on 1,400 samples, at one site with accelerators."""
    study = {
        "model": LLAMA,
        "data": {"per_task": 20, "max_tokens": 512},
        "sites": SITES,
        "evaluation": {"per_task": 100},
        "training": {"steps": 3, "batch_size": 48, "learning_rate": 1e-5, "precision": "bf16"},
    }
    campaign = settle_dtype(check_campaign(nano(**{**study, **changes}), tmp_path))
    return make_plan(campaign, tmp_path / "run", tmp_path / "c.yaml")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "memory_limit", lambda: HOST)


def test_a_login_node_is_refused_for_a_large_model_with_the_sum(tmp_path: Path) -> None:
    made = plan(tmp_path)
    found = evaluation_sum(made)
    assert found is not None and found.samples is not None
    assert found.parameters == 6_738_415_616 and found.models == 2
    assert found.operations == pytest.approx(2 * 2 * found.samples * 512 * 6_738_415_616)
    (told,) = place_problems(made)
    assert told.startswith(
        f"evaluation (on this machine): a round evaluates 2 models x {found.samples:,} samples x up to 512"
    )
    assert (
        "x 2 x 6.74 G parameters" in told and "at 50 Gflop/s (1 thread), more than 6 h. Use evaluation.site: " in told
    )


def test_memory_of_this_machine_with_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capped = MemoryLimit(16_000_000_000, "the limit in /sys/fs/cgroup/user.slice/memory.max")
    monkeypatch.setattr(places, "memory_limit", lambda: capped)
    told = place_problems(plan(tmp_path, evaluation={"per_task": 1}))
    assert told[0].startswith(
        "memory: the workers on this machine need evaluation 27.7 GB = 27.7 GB, and it lets them have"
    )
    assert "16 GB (the limit in /sys/fs/cgroup/user.slice/memory.max)" in told[0]
    assert place_problems(plan(tmp_path, evaluation={"per_task": 1, "site": "far"})) == []


def test_local_sites_count_with_what_they_train(tmp_path: Path) -> None:
    sites = {name: {"config": "local"} for name in ("a", "b")}
    (memory, *_) = place_problems(plan(tmp_path, sites=sites, evaluation={"per_task": 1}))
    assert "evaluation 27.7 GB + a 109 GB + b 109 GB = 245 GB, and it lets them have 64 GB (a test)" in memory


def test_merged_adapters_are_not_streamed(tmp_path: Path) -> None:
    adapted = {**LLAMA, "dtype": "bfloat16", "adapter": {"method": "fedex"}}
    made = plan(tmp_path, model=adapted, evaluation={"per_task": 1})
    terms = dict(places.here_terms(made, evaluation_sum(made)))  # type: ignore[arg-type]
    assert list(terms) == ["evaluation", "final model"] and terms["final model"] == pytest.approx(14.2e9, rel=0.01)


def test_a_site_has_the_device_and_the_memory_of_its_file(tmp_path: Path) -> None:
    there = {"site": "far", "per_task": 100}
    assert place_problems(plan(tmp_path, evaluation=there, server={"site": "far"})) == []
    assert place_problems(plan(tmp_path, evaluation={**there, "device": "xpu"})) == [
        "evaluation.device: xpu, but evaluation (at far) has cuda. Leave it out"
    ]
    own = {"site": {**CLUSTER, "gpus": 1, "gpu_memory_gb": 16}}
    (small,) = place_problems(plan(tmp_path, evaluation=own))
    assert "6.74 G parameters x 4 bytes = 27 GB, and a device there has 16 GB" in small
    assert small.startswith("evaluation (in its own block, ")
    shared = {"site": {**own["site"], "gpus": 4, "ranks_per_node": 4}}
    assert place_problems(plan(tmp_path, evaluation=shared)) == []


def test_an_evaluation_has_to_fit_into_its_block(tmp_path: Path) -> None:
    own = {"site": {**CLUSTER, "threads": 1, "walltime": "1h"}, "per_task": 100}
    (told,) = place_problems(plan(tmp_path, evaluation=own))
    assert told.endswith("and one model has to fit into its block of 60 min")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"evaluation": {"device": "cuda"}}, "evaluation.device: cuda"),
        ({"evaluation": {"site": {"config": "local", "device": "cuda"}}}, "evaluation.device: cuda"),
        ({"sites": {"a": {"config": "local", "device": "xpu"}}}, "sites.a: xpu"),
    ],
)
def test_a_device_that_this_machine_lacks(changes: dict, key: str, tmp_path: Path) -> None:
    tiny = {"model": {"source": "tiny", "tiny": {"width": 32, "layers": 1}}, "sites": {"a": {"config": "local"}}}
    told = place_problems(plan(tmp_path, **{**tiny, **changes}))
    assert told and told[0].startswith(f"{key}, and torch finds none on this machine")
    assert place_problems(plan(tmp_path, **tiny)) == []


def test_exit_code_and_start(tmp_path: Path) -> None:
    """Found by --check, and by a start before the run directory exists."""
    path = write_campaign(tmp_path, evaluation={"per_task": 1, "device": "cuda"})
    checked, started = run(tmp_path, path, "--check"), run(tmp_path, path)
    assert (checked.returncode, started.returncode) == (2, 2)
    assert "PROBLEM  evaluation.device: cuda, and torch finds none" in checked.stdout
    assert "evaluation.device: cuda" in started.stderr and "--resume" not in started.stderr
    assert not (tmp_path / "runs").exists()


def test_the_places_are_shown(tmp_path: Path) -> None:
    lines = dict(
        place_lines(plan(tmp_path, evaluation={"site": "far"}, server={"site": {**CLUSTER, "walltime": "1h"}}))
    )
    assert lines["evaluation"] == "at far" and lines["server"].startswith("in its own block, ")
    assert list(place_lines(plan(tmp_path, evaluation={"per_task": 1}, sites=SITES)))[-1][1].startswith(
        "a round evaluates"
    )


# -- limits of memory -------------------------------------------------------------------------------------------


def test_the_smallest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    group = tmp_path / "user.slice" / "user-1000.slice" / "session-2.scope"
    group.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("0::/user.slice/user-1000.slice/session-2.scope\n")
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000000\n")
    limit = memory_limit(tmp_path, own)
    assert limit == MemoryLimit(1_000_000, f"the limit in {group.parent / 'memory.max'}")
    assert memory_limit(tmp_path / "nothing", own).source == "all of its memory"


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "user"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("2000000\n")
    own = tmp_path / "cgroup"
    own.write_text("9:cpu,cpuacct:/user\n4:memory:/user\n")
    assert memory_limit(tmp_path, own).nbytes == 2_000_000


def test_the_shell_may_limit_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    soft = {resource.RLIMIT_AS: 3_000_000, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (soft[number], soft[number]))
    assert memory_limit(tmp_path, tmp_path / "none") == MemoryLimit(3_000_000, "ulimit -v")

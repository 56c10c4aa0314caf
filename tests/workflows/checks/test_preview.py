"""What ``--dry-run`` prints of the large campaign, and what ``--live`` finds out from real schedulers."""

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

from apps.site import storage_problem
from site_configs.library.queues import format_walltime
from site_configs.library.resolve import resolve_site
from site_configs.library.site import Block, Queue, Site
from site_configs.local import site as local_site
from workflows.checks import live as live_checks
from workflows.checks.live import check_live, environment_answer
from workflows.checks.preview import _walltime_hint, describe, dry_run
from workflows.planning.campaign_file import load_campaign, settle_dtype
from workflows.planning.plan import Plan, make_plan

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

BLOCK = Block("slurm", Queue("small", 1, 8, 7200, date(2026, 8, 19), "a guide"), 2, 5400)
LLAMA = Path(__file__).resolve().parents[3] / "workflows" / "campaigns" / "smolinstruct_llama2_7b.yaml"
TINY = LLAMA.parent / "demo.yaml"
STORAGE = {
    "perlmutter": "/pscratch/sd/a/ada/crossfed",
    "polaris": "/eagle/ABC/crossfed",
    "aurora": "/flare/ABC/crossfed",
    "frontier": "/lustre/orion/abc123/proj-shared/crossfed",
}

# -- the dry run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry") / "runs" / "llama"


@pytest.fixture(scope="module")
def llama(run_dir: Path) -> Plan:
    pairs = ((name, root) for name, root in STORAGE.items())
    sets = [text for name, root in pairs for text in (f"sites.{name}.account=ABC", f"sites.{name}.storage_root={root}")]
    return make_plan(load_campaign(LLAMA, sets), run_dir, LLAMA)


@pytest.fixture(scope="module")
def parts(llama: Plan, run_dir: Path) -> dict[str, str]:
    """What is printed for each site."""
    text = "\n".join(dry_run(llama, run_dir))
    found = text.split(f"\n# {'=' * 20} ")
    assert found[0] == ""
    return {part.partition(":")[0]: part for part in found[1:]}


def test_every_machine_is_there_in_order(parts: dict[str, str]) -> None:
    assert list(parts) == list(STORAGE)
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
    assert line.startswith(f"# training: {launch} ") and line.endswith("python -m apps.training.trainer JOB")


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


def test_to_print_leaves_nothing_behind(parts: dict[str, str], run_dir: Path) -> None:
    assert len(parts) == 4 and not run_dir.exists()


def test_a_site_on_this_machine_is_a_command(tmp_path: Path) -> None:
    work = {"parallel": {"nodes": 1, "ranks_per_node": 1}}
    plan: Any = SimpleNamespace(sites={"a": local_site("a", tmp_path)}, site_work={"a": work}, memory={})
    text = "\n".join(dry_run(plan, tmp_path / "run"))
    assert "# started on this machine\n" in text and "-m workflows.runtime.fork_server" in text
    assert "#SBATCH" not in text
    assert text.endswith("# training: in the worker itself, one rank") and not (tmp_path / "run").exists()


def test_the_plan_in_words(llama: Plan, run_dir: Path) -> None:
    lines = dict(line.split(":", 1) for line in describe(llama, run_dir))
    assert "2 nodes for" in lines["block of aurora"] and "account ABC, kept over rounds" in lines["block of aurora"]
    assert "rule of 2026" in lines["block of frontier"] and str(run_dir) in lines["run directory"]
    missing = [line for line in describe(llama, run_dir) if line.startswith("not on this machine")]
    assert any("sites.polaris.data: smolinstruct/data.zip" in line for line in missing)


def test_a_quorum_without_a_deadline_is_told_to_wait_for_queues_all_the_same(run_dir: Path) -> None:
    sets = [f"sites.{name}.{key}" for name in STORAGE for key in ("account=ABC", f"storage_root={STORAGE[name]}")]

    def hints(*more: str) -> list[str]:
        plan = make_plan(load_campaign(LLAMA, [*sets, *more]), run_dir, LLAMA)
        return [line for line in describe(plan, run_dir) if line.startswith("quorum:")]

    (hint,) = hints("strategy.quorum=2")
    assert all(name in hint for name in STORAGE) and hint.endswith("--set strategy.deadline_s=SECONDS")
    assert not hints("strategy.quorum=null") and not hints("strategy.quorum=2", "strategy.deadline_s=3600")


def test_ranks_without_a_sample_are_told_before_the_start(run_dir: Path) -> None:
    sets = ["sites={polaris: {account: ABC, storage_root: /eagle/ABC/cf, nodes: 4}}", "training.batch_size=6"]
    told = describe(make_plan(load_campaign(TINY, sets), run_dir, TINY), run_dir)
    assert [line for line in told if line.startswith("training of ")] == [
        "training of polaris: 16 ranks share a batch of 6, 10 have nothing to do: use fewer nodes or a larger"
        " training.batch_size"
    ]


def test_accumulated_batches_count_for_the_training_time(run_dir: Path) -> None:
    own = [f"sites.{name}.{key}" for name in STORAGE for key in ("account=ABC", f"storage_root={STORAGE[name]}")]
    told = []
    for steps, accumulate in ((300, 3), (900, 1), (300, 1)):
        sets = [*own, f"training.steps={steps}", f"training.accumulate={accumulate}"]
        lines = describe(make_plan(load_campaign(LLAMA, sets), run_dir, LLAMA), run_dir)
        told += [line for line in lines if line.startswith("walltime of polaris")]
    assert "training alone" in told[0] and told[0] == told[1] != told[2]


def test_a_walltime_that_nobody_chose_is_told_with_how_to_choose(llama: Plan, run_dir: Path) -> None:
    lines = dict(line.split(":", 1) for line in describe(llama, run_dir))
    unset = lines["walltime of aurora"].strip()
    block = llama.sites["aurora"].block
    assert block is not None
    assert unset.startswith(f"none is set, so that {format_walltime(block.walltime_s)} is asked for; a shorter job")
    assert re.search(
        r"--set sites.aurora.walltime=4h \(training alone, all rounds: .* (min|h) or more, an estim", unset
    )
    sets = [f"sites.{name}.{key}" for name in STORAGE for key in ("account=ABC", f"storage_root={STORAGE[name]}")]
    chosen = load_campaign(LLAMA, [*sets, "sites.aurora.walltime=4h", "sites.polaris.blocks=per_round"])
    again = dict(line.split(":", 1) for line in describe(make_plan(settle_dtype(chosen), run_dir, LLAMA), run_dir))
    assert "walltime of aurora" not in again and " 4:00:00 " in again["block of aurora"]
    assert "(training alone, a round: " in again["walltime of polaris"]


def test_a_machine_whose_walltime_cannot_be_set_gets_no_advice(tmp_path: Path) -> None:
    entry = SimpleNamespace(config="local", settings={})
    plan: Any = SimpleNamespace(campaign=SimpleNamespace(sites={"alpha": entry}))
    assert list(_walltime_hint(plan, "alpha", BLOCK)) == []


# -- this machine's part of the live check ----------------------------------------------------------------------


def test_storage_is_made_and_left_clean(tmp_path: Path) -> None:
    assert storage_problem(tmp_path / "a" / "b") is None
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert storage_problem(tmp_path / "file" / "b") == f"Not a directory ({tmp_path / 'file' / 'b'})"


def here(tmp_path: Path, **changes: Any) -> Site:
    return dataclasses.replace(local_site("alpha", tmp_path), **changes)


def test_the_drivers_own_environment_has_no_problem(tmp_path: Path) -> None:
    assert environment_answer(here(tmp_path))[0] is None


def fake_python(folder: Path, body: str) -> Path:
    """An environment whose python is a shell script."""
    program = folder / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    for path in (program, program.parent / "process_worker_pool.py"):
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return folder / "env"


def test_an_environment_that_is_not_there_or_has_no_parsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = environment_answer(here(tmp_path, python_env=tmp_path / "nowhere"))
    assert nowhere[0] == f"python_env: there is no {tmp_path}/nowhere/bin/python"
    bare = fake_python(tmp_path, "true")
    (bare / "bin" / "process_worker_pool.py").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    told = environment_answer(here(tmp_path, python_env=bare))[0]
    assert told == "no process_worker_pool.py on PATH: this environment has no Parsl"


def test_what_the_setup_has_to_say_is_told(tmp_path: Path) -> None:
    problem, said = environment_answer(here(tmp_path, setup="module_that_is_not_there"))
    assert problem is None and said.endswith("module_that_is_not_there: command not found")


def test_another_python_at_the_site_is_told_with_what_differs(tmp_path: Path) -> None:
    edits = """s/"parsl": "[^"]*"/"parsl": "2020.1"/; s/"crossfed": "[^"]*"/"crossfed": "0"/"""
    changed = f"{sys.executable} \"$@\" | sed '{edits}'"
    problem = environment_answer(here(tmp_path, python_env=fake_python(tmp_path, changed)))[0]
    assert problem is not None
    differ = problem.split(", ")
    assert len(differ) == 2 and differ[0].startswith("crossfed 0 instead of ")
    assert differ[1].startswith("parsl 2020.1 instead of ")


@pytest.mark.parametrize(
    ("setup", "problem"),
    [
        ("echo loading; echo 'no such module: cuda/99' >&2; exit 3", "no such module: cuda/99"),
        ("exit 3", "its set-up ends without a word"),
        ("python() { return 0; }", "its set-up ends without a word"),
        ("python() { echo Python 2.7; }", "its python printed no versions, but 'Python 2.7'"),
        ("python() { echo 7; }", "its python printed no versions, but '7'"),
    ],
)
def test_a_setup_that_breaks_python(tmp_path: Path, setup: str, problem: str) -> None:
    assert problem in (environment_answer(here(tmp_path, setup=setup))[0] or "")


def test_an_environment_without_the_project(tmp_path: Path) -> None:
    alone = fake_python(tmp_path, f'exec {sys.executable} -I -S "$@"')  # with the standard library alone
    assert environment_answer(here(tmp_path, python_env=alone))[0] == "ModuleNotFoundError: No module named 'apps'"


def test_a_setup_may_talk_and_need_not_be_perfect(tmp_path: Path) -> None:
    """A job goes on after such lines as well."""
    assert environment_answer(here(tmp_path, setup="echo hello; false\nmodule_that_is_not_there"))[0] is None


def test_a_setup_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*words: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(live_checks.subprocess, "run", slow)
    assert environment_answer(here(tmp_path))[0] == "its set-up takes more than 300 s"


# -- the live check ---------------------------------------------------------------------------------------------

Ask = Callable[[Site], tuple[bool, list[str]]]


def live(site: Site) -> tuple[bool, list[str]]:
    """Whether all is well, and what is said."""
    said: list[str] = []
    plan: Any = SimpleNamespace(sites={site.name: site}, server_work={"store": "runs/not_there/artifacts"})
    return check_live(plan, said.append), said


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Without the question about Python, which has its own tests."""
    monkeypatch.setattr(live_checks, "environment_answer", lambda site: (None, ""))
    return live


def slurm_alpha(cluster: SlurmCluster, folder: Path, **settings: Any) -> Site:
    entry = slurm_entry(cluster, folder / "storage", **{"partition": "regular", "account": "fusion", **settings})
    return resolve_site("alpha", entry.pop("config"), folder / "run", entry)


def pbs_alpha(facility: PbsFacility, folder: Path, **settings: Any) -> Site:
    entry = pbs_entry(facility, folder / "storage", **{"queue": "debug", "account": "fusion", **settings})
    return resolve_site("alpha", entry.pop("config"), folder / "run", entry)


def with_limit(site: Site, jobs: int) -> Site:
    assert site.block is not None
    queue = dataclasses.replace(site.block.queue, queued_per_user=jobs, source="a guide")
    return dataclasses.replace(site, block=dataclasses.replace(site.block, queue=queue))


def problems(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("PROBLEM")]


def test_a_site_on_this_machine_is_asked_for_storage_and_python(quickly: Ask, tmp_path: Path) -> None:
    fine, said = quickly(here(tmp_path))
    assert fine and [line[:15] for line in said] == ["ok       alpha:"] * 2


def test_an_interface_that_this_host_has_not(quickly: Ask, tmp_path: Path) -> None:
    site = resolve_site("alpha", "slurm", tmp_path, {"storage_root": str(tmp_path), "driver_interface": "hsn99"})
    fine, said = quickly(site)
    line = said[-1]
    assert not fine and line.startswith("PROBLEM  alpha: there is an address that its compute nodes can call back: ")
    assert "no network interface 'hsn99'" in line and "or set sites.alpha.address" in line


def test_a_scheduler_that_is_not_there(quickly: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin-not-there")
    settings = {"storage_root": str(tmp_path), "queue": "q", "address": "127.0.0.1"}
    fine, said = quickly(resolve_site("alpha", "pbs", tmp_path, settings))
    assert not fine and problems(said) == [
        "PROBLEM  alpha: queue q takes jobs: PBS does not answer: qstat cannot be run: No such file or directory",
        "PROBLEM  alpha: my jobs: the scheduler does not answer",
    ]


@pytest.mark.slurm
def test_slurm_with_nothing_to_complain_of(tmp_path: Path, slurm_site: SlurmCluster) -> None:
    fine, said = live(slurm_alpha(slurm_site, tmp_path))
    assert fine, said
    words = [re.sub("T[0-9:]+ using .*", "", line.partition("alpha: ")[2]) for line in said]
    assert words == [
        "queue regular takes jobs",
        "account fusion is valid",
        "my jobs in regular: 0",
        f"Slurm would take its job, to start at {date.today()}",
        f"storage {tmp_path / 'storage' / 'run' / 'alpha'} can be written",
        "Python, packages and code in its jobs are those of the driver",
        "there is an address that its compute nodes can call back",
    ]


@pytest.mark.slurm
def test_the_clusters_own_partition_has_no_name_to_ask_for(
    quickly: Ask, tmp_path: Path, slurm_site: SlurmCluster
) -> None:
    fine, said = quickly(slurm_alpha(slurm_site, tmp_path, partition="", account=""))
    assert fine and said[0] == "ok       alpha: my jobs in all queues: 0"


@pytest.mark.slurm
def test_slurm_with_a_wrong_account(quickly: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    fine, said = quickly(slurm_alpha(slurm_site, tmp_path, account="fission"))
    problem, refused = problems(said)
    assert not fine and "account fission is valid: account fission is not yours on shared; yours are: " in problem
    assert "fusion" in problem and "Slurm would take its job: " in refused and "Invalid account" in refused


@pytest.mark.slurm
def test_slurm_with_a_closed_partition_and_one_that_is_none(
    quickly: Ask, tmp_path: Path, slurm_site: SlurmCluster
) -> None:
    slurm_site.set_partition("regular", "drain")
    try:
        fine, said = quickly(slurm_alpha(slurm_site, tmp_path))
    finally:
        slurm_site.set_partition("regular", "up")
    closed, refused = problems(said)
    assert not fine and closed.endswith("queue regular takes jobs: partition regular is draining: it takes no jobs")
    assert refused.startswith("PROBLEM  alpha: Slurm would take its job: allocation failure: ")
    fine, said = quickly(slurm_alpha(slurm_site, tmp_path, partition="gpu"))
    unknown, refused = problems(said)
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
def test_what_only_slurm_itself_knows(
    quickly: Ask, tmp_path: Path, slurm_site: SlurmCluster, settings: dict[str, Any], words: str
) -> None:
    before = set(slurm_site.jobs())
    fine, said = quickly(slurm_alpha(slurm_site, tmp_path, **settings))
    (problem,) = problems(said)
    assert not fine and problem.startswith("PROBLEM  alpha: Slurm would take its job: ") and words in problem
    assert set(slurm_site.jobs()) <= before  # nothing was submitted


@pytest.mark.slurm
def test_slurm_with_a_full_queue_and_storage_in_the_way(quickly: Ask, tmp_path: Path, slurm_site: SlurmCluster) -> None:
    for _ in range(2):
        slurm_site.submit("sleep 60", "--partition=regular", "--hold")
    site = with_limit(slurm_alpha(slurm_site, tmp_path), 2)
    (tmp_path / "storage").touch()
    fine, said = quickly(site)
    full, storage = problems(said)
    assert not fine and "my jobs in regular: 2: regular takes 2 jobs of a user (a guide, " in full
    assert storage.endswith(f"can be written: Not a directory ({site.storage_root})")
    assert quickly(with_limit(site, 3))[1][2] == "ok       alpha: my jobs in regular: 2"


@pytest.mark.slurm
def test_pbs_with_nothing_to_complain_of_and_with_a_full_queue(
    quickly: Ask, tmp_path: Path, pbs_site: PbsFacility
) -> None:
    site = pbs_alpha(pbs_site, tmp_path)
    fine, said = quickly(site)
    assert fine, said
    pbs_site.submit("sleep 60", "-q", "debug", "-A", "fusion", "-l", "filesystems=home", "-l", "walltime=60", "-h")
    fine, said = quickly(with_limit(site, 1))
    assert not fine and "my jobs in debug: 1: debug takes 1 job of a user" in problems(said)[0]


@pytest.mark.slurm
def test_pbs_with_a_closed_queue_none_and_a_server_that_is_down(
    quickly: Ask, tmp_path: Path, pbs_site: PbsFacility
) -> None:
    pbs_site.set_queue("debug", enabled=False)
    try:
        fine, said = quickly(pbs_alpha(pbs_site, tmp_path))
    finally:
        pbs_site.set_queue("debug")
    assert not fine and "queue debug takes no jobs (enabled = False)" in problems(said)[0]
    assert "there is no queue nope" in problems(quickly(pbs_alpha(pbs_site, tmp_path, queue="nope"))[1])[0]
    pbs_site.stop_server()
    try:
        fine, said = quickly(pbs_alpha(pbs_site, tmp_path))
    finally:
        pbs_site.start_server()
    assert not fine and [line.partition("alpha: ")[2][:30] for line in problems(said)] == [
        "queue debug takes jobs: PBS do",
        "my jobs: the scheduler does no",
    ]

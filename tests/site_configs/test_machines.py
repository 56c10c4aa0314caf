"""Tests that each machine's Site is complete and that its batch script equals the reviewed one in ``golden/``.

``CROSSFED_WRITE_GOLDEN=1 pytest tests/site_configs/test_machines.py`` writes the scripts again; read the difference.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from site_configs.library.resolve import SiteConfigError, available, resolve_site
from site_configs.library.site import Site

GOLDEN = Path(__file__).parent / "golden"
RUN_DIR = Path("/home/ada/runs/demo")
ALCF = {"account": "ABC", "nodes": 2, "walltime": "6:00:00"}
SETTINGS: dict[str, dict[str, Any]] = {
    "polaris": ALCF | {"storage_root": "/eagle/ABC/crossfed"},
    "aurora": ALCF | {"storage_root": "/flare/ABC/crossfed"},
    "frontier": ALCF | {"storage_root": "/lustre/orion/abc123/proj-shared/crossfed"},
    "perlmutter": ALCF | {"storage_root": "/pscratch/sd/a/ada/crossfed"},
    "perlmutter_80gb": ALCF | {"storage_root": "/pscratch/sd/a/ada/crossfed"},
    "slurm": {
        "storage_root": "/scratch/crossfed",
        "partition": "gpu",
        "qos": "long",
        "account": "abc",
        "nodes": 2,
        "walltime": "90m",
        "cores": 16,
        "memory_gb": 64,
        "gpus": 2,
        "ranks_per_node": 2,
        "setup": "module load cuda",
        "options": ["--constraint=a100"],
        "python_env": "/shared/crossfed",
    },
    "pbs": {
        "storage_root": "/scratch/crossfed",
        "queue": "workq",
        "account": "abc",
        "nodes": 2,
        "walltime": "90m",
        "cores": 16,
        "gpus": 2,
        "ranks_per_node": 2,
        "select": "system=polaris",
        "options": ["-l filesystems=home"],
    },
}


def made(machine: str, **settings: Any) -> Site:
    return resolve_site(machine, machine, RUN_DIR, SETTINGS[machine] | settings)


def script_of(machine: str) -> str:
    site = made(machine)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    provider: Any = site.provider("\n".join([site.setup, *exports]).strip())
    provider.job_prefix = f"cf-0123456789-{machine}"
    provider.script_dir = str(RUN_DIR / "parsl" / "000" / "submit_scripts")
    return provider.render("process_worker_pool.py --max_workers_per_node=1 --block_id=0")


MACHINES = sorted(SETTINGS)
FACILITIES = ["aurora", "frontier", "perlmutter", "perlmutter_80gb", "polaris"]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_script_is_the_one_that_was_reviewed(machine: str) -> None:
    path, script = GOLDEN / f"{machine}.sh", script_of(machine)
    if os.environ.get("CROSSFED_WRITE_GOLDEN") == "1":
        path.write_text(script)
    assert script == path.read_text()


def test_shellcheck_reports_nothing() -> None:
    if not shutil.which("shellcheck"):
        if os.environ.get("CROSSFED_REQUIRE_SLURM") == "1":
            pytest.fail("needs shellcheck; run .ci/packages.sh as root")
        pytest.skip("needs shellcheck on this machine")
    found = subprocess.run(["shellcheck", *sorted(map(str, GOLDEN.glob("*.sh")))], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_every_batch_machine_has_a_script() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(MACHINES) == set(available()) - {"local"}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_site_is_complete(machine: str) -> None:
    site = made(machine)
    assert site.route == "batch" and site.block and site.node and site.heartbeat_s == 600
    assert site.storage_root == Path(SETTINGS[machine]["storage_root"]) / "demo" / machine
    assert site.block.nodes == 2 and site.block.walltime_s in (6 * 3600, 90 * 60)
    assert site.ranks.per_node == site.node.devices
    assert site.environment["OMP_NUM_THREADS"] == str(site.threads)
    assert site.threads * site.ranks.per_node <= site.node.cores
    assert (site.device, site.ranks.backend) == (("xpu", "xccl") if machine == "aurora" else ("cuda", "nccl"))


@pytest.mark.parametrize("machine", MACHINES)
def test_the_launch_line_has_no_placeholder(machine: str) -> None:
    launch = made(machine).ranks.launch
    filled = [word.format(nodes=2, ranks=24, ranks_per_node=12) for word in launch]
    assert "24" in " ".join(filled) and "{" not in "".join(filled)
    assert filled[0] == ("mpiexec" if machine in ("aurora", "polaris", "pbs") else "srun")


@pytest.mark.parametrize("machine", FACILITIES)
def test_a_facility_is_reached_from_its_login_node(machine: str) -> None:
    site = made(machine)
    assert site.address == "" and site.driver_interface == ("bond0" if machine == "polaris" else "hsn0")
    assert made(machine, address="10.0.0.1").address == "10.0.0.1"
    assert len(site.environment["TMPDIR"]) < 20 and site.collection and len(site.collection.id) == 36
    assert site.node and len(site.node.device_names) == site.node.devices
    assert (
        site.node.device_memory_bytes
        == {"polaris": 40, "perlmutter": 40, "perlmutter_80gb": 80}.get(machine, 64) * 10**9
    )


def test_amd_devices_are_not_hidden_twice_and_miopen_stays_off_lustre() -> None:
    setup = made("frontier").setup
    assert "unset CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES" in setup and 'MIOPEN_USER_DB_PATH="/tmp/' in setup
    assert "CUDA_VISIBLE_DEVICES" not in made("frontier").environment


def test_a_tile_of_aurora_is_a_device() -> None:
    site = made("aurora")
    assert site.environment["ZE_FLAT_DEVICE_HIERARCHY"] == "FLAT" and "ZE_AFFINITY_MASK" not in site.environment
    (cores,) = [word.removeprefix("list:") for word in site.ranks.launch if word.startswith("list:")]
    parts = [tuple(map(int, part.split("-"))) for part in cores.split(":")]
    assert len(parts) == 12 and all(last - first + 1 == site.threads == 7 for first, last in parts)
    assert not [part for part in parts for system in (0, 52) if part[0] <= system <= part[1]]
    workers = [int(core) for core in site.environment["CCL_WORKER_AFFINITY"].split(",")]
    assert not set(workers) & {core for first, last in parts for core in range(first, last + 1)}
    few = made("aurora", ranks_per_node=2).environment
    assert few["CCL_WORKER_AFFINITY"] == "1,9"  # one worker of oneCCL a rank
    assert (few["CCL_PROCESS_LAUNCHER"], few["PALS_PMI"]) == ("pmix", "pmix")


@pytest.mark.parametrize(
    ("nccl", "net", "plugin"),
    [("module", "set by the module", ""), ("ofi", "AWS Libfabric", "aws-ofi-nccl"), ("tcp", "", "")],
)
def test_the_network_of_nccl_on_polaris(nccl: str, net: str, plugin: str) -> None:
    lines = made("polaris", nccl=nccl).setup.splitlines()
    shell = "\n".join(line for line in lines if not line.startswith(("module", "conda")))
    environment = {"NCCL_NET": "set by the module", "PATH": os.environ["PATH"]}
    show = f'{shell}\necho "$NCCL_NET|$LD_LIBRARY_PATH"'
    done = subprocess.run(["bash", "-c", show], env=environment, capture_output=True, text=True, check=True)
    found, libraries = done.stdout.strip().split("|")
    assert found == net and plugin in libraries


@pytest.mark.parametrize(
    ("machine", "settings", "queue", "hours"),
    [
        ("polaris", {"walltime": None}, "capacity", 168),
        ("polaris", {"walltime": None, "blocks": "per_round"}, "capacity", 1),
        ("polaris", {"walltime": "1h", "queue": "debug"}, "debug", 1),
        ("perlmutter", {"walltime": "30m"}, "regular", 0.5),
        ("polaris", {"walltime": None, "nodes": 12}, "small", 3),
        ("polaris", {"walltime": "1h", "queue": "preemptable"}, "preemptable", 1),
        ("aurora", {"walltime": None, "nodes": 16}, "capacity", 168),
        ("frontier", {"walltime": None, "nodes": 65}, "batch-bin-5", 2),
        ("frontier", {"walltime": "1:00:00", "queue": "debug"}, "debug", 1),
        ("perlmutter", {"walltime": None}, "regular", 48),
        ("slurm", {"walltime": None}, "gpu", 1),
        ("pbs", {"walltime": None, "max_walltime": "1d"}, "workq", 24),
    ],
)
def test_the_block_that_a_request_gets(machine: str, settings: dict, queue: str, hours: float) -> None:
    block = made(machine, **settings).block
    assert block and (block.queue.name, block.walltime_s) == (queue, hours * 3600)


@pytest.mark.parametrize(
    ("machine", "settings", "message"),
    [
        ("polaris", {"storage_root": "/tmp/x"}, "storage_root: /tmp/x is on no file system that the block requests"),
        (
            "polaris",
            {"filesystems": "home"},
            r"storage_root: /eagle/ABC/crossfed is on no file system .*\(home: /home\)",
        ),
        ("polaris", {"filesystems": ""}, "filesystems: '' is unknown; known: home, eagle"),
        ("frontier", {"storage_root": "/ccs/home/ada"}, "orion: /lustre/orion"),
        ("slurm", {"storage_root": "scratch"}, "storage_root: scratch is relative; give the whole path at the site"),
        ("polaris", {"nodes": 20}, "no queue takes 20 nodes for 6:00:00.*ALCF Polaris guide, 2026-08-19.*nearest"),
        ("polaris", {"queue": "demand", "nodes": 60}, "queue demand does not take 60 nodes"),
        ("polaris", {"ranks_per_node": 5}, "ranks_per_node: Input should be less than or equal to 4"),
        ("perlmutter_80gb", {"nodes": 257}, "no queue takes 257 nodes for 6:00:00: regular takes 1-256 nodes"),
        ("slurm", {"nodes": 4, "max_nodes": 2}, "no queue takes 4 nodes for 1:30:00: gpu takes 1-2 nodes .*your own"),
        ("pbs", {"walltime": "soon"}, "walltime: 'soon' is not a walltime; write 2:00:00"),
        ("polaris", {"account": ""}, "account: String should match pattern"),
        ("slurm", {"blocks": "always"}, "blocks: Input should be 'pilot' or 'per_round'"),
    ],
)
def test_requests_that_the_facility_would_refuse_are_refused(machine: str, settings: dict, message: str) -> None:
    with pytest.raises(SiteConfigError, match=message):
        made(machine, **settings)


def test_the_constraint_of_perlmutter_selects_node_and_limits() -> None:
    site = made("perlmutter", constraint="gpu&hbm80g")
    assert site.machine == made("perlmutter_80gb").machine == "Perlmutter 80 GB (NERSC)"
    assert site.node == made("perlmutter_80gb").node
    assert made("perlmutter", nodes=257).machine == "Perlmutter (NERSC)"


def test_gpu_accounts_of_nersc_end_in_g() -> None:
    for account in ("m1234", "m1234_g"):
        block = made("perlmutter", account=account).block
        assert block and block.account == "m1234_g"


def test_two_campaigns_and_two_sites_share_a_storage_root() -> None:
    roots = [
        resolve_site(name, "slurm", run, {"storage_root": "/scratch"}).storage_root
        for name, run in (("a", Path("runs/x")), ("b", Path("runs/x")), ("a", Path("runs/y")))
    ]
    assert roots == [Path("/scratch/x/a"), Path("/scratch/x/b"), Path("/scratch/y/a")]


def rendered(machine: str, **settings: Any) -> str:
    provider: Any = made(machine, **settings).provider("")
    return provider.render("pool")


@pytest.mark.parametrize(
    ("machine", "reservation", "line"),
    [
        ("polaris", {"queue": "R123456"}, "qsub  -q R123456 -A ABC"),
        ("polaris", {"reservation": "R123456"}, "qsub  -q R123456 -A ABC"),
        ("aurora", {"queue": "M7.aurora-pbs-0001"}, "qsub  -q M7 -A ABC"),
        ("aurora", {"queue": "S99"}, "qsub  -q S99 -A ABC"),
        ("pbs", {"reservation": "R5"}, "qsub  -q R5 -A abc"),
        ("frontier", {"reservation": "hero_run"}, "#SBATCH --reservation=hero_run"),
        ("perlmutter", {"reservation": "llm", "queue": "regular"}, "#SBATCH --reservation=llm"),
        ("slurm", {"reservation": "course"}, "#SBATCH --reservation=course"),
    ],
)
def test_a_reservation(machine: str, reservation: dict, line: str) -> None:
    """Its own limits count, not those of the queue."""
    assert line in rendered(machine, **reservation, nodes=200, walltime="30h")
    with pytest.raises(SiteConfigError, match="walltime: name one that ends within the reservation"):
        made(machine, **reservation, walltime=None)


@pytest.mark.parametrize(
    ("machine", "options", "lines"),
    [
        ("frontier", ["-C nvme", "--mail-type=END"], ["#SBATCH -C nvme", "#SBATCH --mail-type=END"]),
        ("frontier", ["#SBATCH --qos=special"], ["#SBATCH --qos=special"]),
        ("perlmutter", ["--licenses=cfs,scratch"], ["#SBATCH --licenses=cfs,scratch"]),
        ("perlmutter", ["--qos=express"], ["#SBATCH --qos=express"]),
        ("aurora", ["-l daos=daos_user", "-M ada@example.org"], ["#PBS -l daos=daos_user", "#PBS -M ada@example.org"]),
        ("polaris", ["-k doe"], ["#PBS -k doe"]),
        ("polaris", "-k doe", ["#PBS -k doe"]),
        ("slurm", ["--gres=gpu:a100:2"], ["#SBATCH --gres=gpu:a100:2"]),
        ("pbs", ["-l filesystems=home", "-W umask=022"], ["#PBS -l filesystems=home", "#PBS -W umask=022"]),
    ],
)
def test_further_options_of_the_batch_script(machine: str, options: list[str] | str, lines: list[str]) -> None:
    script = rendered(machine, options=options).splitlines()
    assert [line for line in script if line in lines] == lines


@pytest.mark.parametrize(
    ("machine", "option", "reason"),
    [
        ("slurm", "--array=0-3", "--array cannot be set .*: a block is one job"),
        ("slurm", "-a 0-3", "-a cannot be set"),
        ("slurm", "-a0-3", "-a cannot be set"),
        ("slurm", "--arr=0-3", "--arr cannot be set"),
        ("slurm", "#SBATCH -C nvme -a 0-3", "-a cannot be set"),
        ("slurm", "--wrap=hostname", "--wrap cannot be set"),
        ("slurm", "-N 4", "-N cannot be set .*: set nodes"),
        ("slurm", "--nodes=4", "set nodes"),
        ("slurm", "--time=10", "set walltime"),
        ("slurm", "-t10", "set walltime"),
        ("slurm", "-J mine", "found by the names"),
        ("slurm", "-o out", "output is read"),
        ("slurm", "--requeue", "two blocks under one name"),
        ("slurm", "--dependency=afterok:1", "each block would wait"),
        ("slurm", "--hold", "never start"),
        ("slurm", "-HC x", "-H cannot be set"),
        ("slurm", "-W", "driver would wait"),
        ("slurm", "--parsable", "driver would wait"),
        ("slurm", "--account=x", "set account"),
        ("slurm", "--export=NONE", "need the variables"),
        ("slurm", "--reservation=x", "set reservation"),
        ("slurm", "nvme", "is no option"),
        ("slurm", "--mail-type=END\n#SBATCH --array=0-3", "has a line break"),
        ("slurm", "--comment='a", "cannot be read"),
        ("pbs", "-J 0-3", "-J cannot be set .*: a block is one job"),
        ("pbs", "-J0-3", "-J cannot be set"),
        ("pbs", "-N mine", "found by the names"),
        ("pbs", "-o out", "output is read"),
        ("pbs", "-j oe", "output is read"),
        ("pbs", "-k oe", "output is read"),
        ("pbs", "-I", "without a terminal"),
        ("pbs", "-VI", "-I cannot be set"),
        ("pbs", "-r y", "two blocks"),
        ("pbs", "-l walltime=1:00:00", "set walltime"),
        ("pbs", "-l filesystems=home,select=4:ncpus=1", "-l select cannot be set .*: set nodes"),
        ("pbs", "-lselect=4", "set nodes"),
        ("pbs", "-W depend=afterok:1", "each block would wait"),
        ("pbs", "-W umask=022,block=true", "driver would wait"),
        ("pbs", "-q debug -V", "set queue"),
        ("pbs", "-A x", "set account"),
        ("pbs", "-z", "driver would wait"),
        ("polaris", "-l filesystems=home", "set filesystems"),
        ("aurora", "-J 0-3", "a block is one job"),
        ("frontier", "--array=1-2", "a block is one job"),
    ],
)
def test_options_that_would_break_a_pilot_job_are_refused(machine: str, option: str, reason: str) -> None:
    with pytest.raises(SiteConfigError, match=f"options: .*{reason}"):
        made(machine, options=[option]).provider("")


def test_a_queue_that_is_not_in_the_table() -> None:
    assert "qsub  -q run_next -A ABC" in rendered("aurora", options=["-q run_next"], nodes=300, walltime="20h")
    assert "qsub  -q next-eval -A ABC" in rendered("aurora", queue="next-eval")
    with pytest.raises(SiteConfigError, match="walltime: name one for the queue run_next"):
        made("aurora", options=["-q run_next"], walltime=None)
    script = rendered("perlmutter", options=["--qos=express"])
    assert script.index("--qos=regular") < script.index("--qos=express")  # sbatch takes the last one


def test_accounts_and_queues_may_be_numbers() -> None:
    block = made("slurm", account=465000123, partition=7).block
    assert block and (block.account, block.queue.name) == ("465000123", "7")
    with pytest.raises(SiteConfigError, match="account"):
        made("slurm", account="abc\n#SBATCH --array=0-3")
    with pytest.raises(SiteConfigError, match="has a line break"):
        made("perlmutter", constraint="gpu\n#SBATCH --array=0-3").provider("")


@pytest.mark.parametrize("walltime", [12, "12", 59])
def test_a_walltime_of_seconds_is_refused(walltime: object) -> None:
    with pytest.raises(
        SiteConfigError, match=f"walltime: {walltime} is seconds; write {walltime}m or 00:{walltime}:00"
    ):
        made("slurm", walltime=walltime)


def test_settings_of_any_cluster() -> None:
    site = resolve_site(
        "x",
        "slurm",
        RUN_DIR,
        {
            "storage_root": "/s",
            "command_environment": {"SLURM_CONF": "/c"},
            "poll_s": 2,
            "heartbeat_s": 2,
            "cores": 2,
            "address": "127.0.0.1",
            "ranks_per_node": 2,
            "environment": {"A": "1"},
            "exclusive": True,
            "blocks": "per_round",
        },
    )
    provider: Any = site.provider("true")
    assert (provider.status_polling_interval, site.heartbeat_s, site.address) == (2, 2, "127.0.0.1")
    assert site.block and site.block.command_environment == {"SLURM_CONF": "/c"} and site.block.reuse == "per_round"
    assert (site.device, site.threads, site.ranks.launch, site.environment["A"]) == ("cpu", 1, (), "1")
    script = provider.render("pool")
    assert "--exclusive" in script and "--partition" not in script and "--account" not in script
    queueless: Any = resolve_site("x", "pbs", RUN_DIR, {"storage_root": "/s"}).provider("")
    assert "-q " not in queueless.render("pool") and "scatter" not in queueless.render("pool")
    ranks = resolve_site("x", "pbs", RUN_DIR, {"storage_root": "/s", "launch": ["mine", "{ranks}"]}).ranks
    assert ranks.launch == ("mine", "{ranks}")


def test_the_python_of_a_site_is_its_own_if_it_names_one() -> None:
    assert made("slurm").python_env == Path("/shared/crossfed") and made("polaris").python_env is None

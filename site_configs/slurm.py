"""Any cluster under Slurm: everything about it is a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from site_configs.library.machine import (
    BACKENDS,
    StorageRoot,
    Walltime,
    batch_block,
    block_provider,
    own_node,
    own_queue,
    site_storage,
    thread_environment,
)
from site_configs.library.site import Blocks, Device, Ranks, Site

SRUN = ("srun", "--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={ranks_per_node}", "--kill-on-bad-exit=1")


def site(
    name: str,
    run_dir: Path,
    *,
    storage_root: StorageRoot,
    partition: str = "",
    qos: str = "",
    account: str = "",
    nodes: PositiveInt = 1,
    walltime: Walltime = None,
    max_nodes: PositiveInt | None = None,
    max_walltime: Walltime = None,
    blocks: Blocks = "pilot",
    cores: PositiveInt = 1,
    memory_gb: NonNegativeFloat = 0,
    gpus: NonNegativeInt = 0,
    gpu_memory_gb: NonNegativeFloat = 0,
    exclusive: bool = False,
    options: Sequence[str] = (),
    device: Device | None = None,
    threads: PositiveInt | None = None,
    ranks_per_node: PositiveInt = 1,
    launch: Sequence[str] | None = None,
    interface: str = "",
    setup: str = "",
    python_env: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command_environment: Mapping[str, str] | None = None,
    address: str = "",
    driver_interface: str = "",
    poll_s: PositiveInt = 60,
    heartbeat_s: PositiveInt = 30,
) -> Site:
    """Blocks on a Slurm cluster whose commands are on this machine's PATH.

    Args:
        name: the site's name in the campaign.
        run_dir: the campaign's run directory, on a file system that the nodes see.
        storage_root: a folder that the nodes see; files go to ``storage_root/RUN/SITE``.
        partition, qos, account: as sbatch takes them; empty: the cluster's own.
        nodes, walltime: of a block; the walltime is one hour where neither it nor a limit is set.
        max_nodes, max_walltime: the partition's limits, if a request beyond them should be refused here.
        blocks: ``pilot`` keeps one job over the rounds, ``per_round`` queues one for each.
        cores, memory_gb, gpus: to ask for on each node; memory 0: what the cluster gives by itself.
        gpu_memory_gb: of one GPU, for the memory plan.
        exclusive: whole nodes.
        options: more lines of the script, as ``--constraint=a100``.
        device: default cuda where there are GPUs, else cpu.
        threads: of a rank; default its share of the cores.
        ranks_per_node: processes of a node that train together.
        launch: how they are started, see ``Ranks``; default srun for several nodes, torch's own launcher for one.
        interface: network interface that the ranks meet on; empty: any.
        setup: shell lines before the workers start.
        python_env: environment with this project at the site; default that of the driver.
        environment: variables for the workers.
        command_environment: variables for sbatch, squeue, scancel, sacct and scontrol, as ``SLURM_CONF``.
        address, driver_interface: where the workers find the driver; both empty: all addresses of this host are tried.
        poll_s: seconds between questions for a block's state.
        heartbeat_s: after twice this time without a word a block counts as lost.
    """
    device = device or ("cuda" if gpus else "cpu")
    rank_cores = max(cores // ranks_per_node, 1)
    threads = threads or rank_cores
    block = batch_block(
        "slurm",
        [own_queue(partition or qos, nodes, walltime, max_nodes, max_walltime)],
        nodes=nodes,
        walltime_s=walltime,
        queue=None,
        account=account,
        blocks=blocks,
        command_environment=command_environment,
    )
    directives = (
        *([f"--partition={partition}"] if partition else []),
        *([f"--qos={qos}"] if qos else []),
        f"--cpus-per-task={rank_cores}",
        *([f"--mem={round(memory_gb * 1000)}M"] if memory_gb else []),
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        *(["--exclusive"] if exclusive else []),
        *options,
    )
    return Site(
        name=name,
        machine="a Slurm cluster",
        route="batch",
        storage_root=site_storage(storage_root, run_dir, name, {}),
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node, poll_s=poll_s),
        device=device,
        threads=threads,
        address=address,
        driver_interface=driver_interface,
        heartbeat_s=heartbeat_s,
        environment={**thread_environment(threads), **(environment or {})},
        setup=setup,
        python_env=python_env,
        block=block,
        node=own_node(device, cores, memory_gb, gpus, gpu_memory_gb),
        ranks=Ranks(
            per_node=ranks_per_node,
            launch=((*SRUN, f"--cpus-per-task={rank_cores}") if nodes > 1 else ()) if launch is None else tuple(launch),
            backend=BACKENDS[device],
            interface=interface,
        ),
    )

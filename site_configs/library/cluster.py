"""Clusters that a user describes by settings: what ``slurm.py`` and ``pbs.py`` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from site_configs.library.machine import (
    BACKENDS,
    GB,
    HEARTBEAT_S,
    BlockSettings,
    Name,
    StorageRoot,
    Walltime,
    batch_block,
    site_storage,
    thread_environment,
)
from site_configs.library.queues import HOUR
from site_configs.library.site import Block, Device, Node, Queue, Ranks, SchedulerKind, Site

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider


class ClusterOptions(BlockSettings, total=False):
    """Settings of a cluster that have a default.

    Attributes:
        account: account of the batch jobs; empty: the cluster's default.
        max_nodes, max_walltime: limits of the queue, if a request beyond them is to be refused here. The walltime of a
            block is one hour if neither it nor a limit is set.
        cores, memory_gb, gpus: resources of each node; memory 0: the cluster's default.
        gpu_memory_gb: memory of one GPU, for the memory plan.
        device: torch device; default cuda if there are GPUs, else cpu.
        threads: threads of a rank; default its share of the cores.
        ranks_per_node: processes on each node that train together.
        launch: command that starts the ranks, see ``Ranks``; default the scheduler's for several nodes, torch's own
            launcher for one.
        interface: network interface of the ranks; empty: any.
        setup: shell lines before the workers start.
        environment: variables of the workers.
        command_environment: variables of the scheduler's commands, such as ``SLURM_CONF`` or ``PBS_SERVER``.
        driver_interface: network interface of the driver's host; if it and ``address`` are empty, the workers try all
            addresses of this host.
        poll_s: seconds between two queries of a block's state.
        heartbeat_s: after twice this time without a message a block counts as lost.
    """

    account: Name
    max_nodes: PositiveInt | None
    max_walltime: Walltime
    cores: PositiveInt
    memory_gb: NonNegativeFloat
    gpus: NonNegativeInt
    gpu_memory_gb: NonNegativeFloat
    device: Device | None
    threads: PositiveInt | None
    ranks_per_node: PositiveInt
    launch: Sequence[str] | None
    interface: str
    setup: str
    environment: Mapping[str, str] | None
    command_environment: Mapping[str, str] | None
    driver_interface: str
    poll_s: PositiveInt
    heartbeat_s: PositiveInt


class ClusterSettings(ClusterOptions):
    """Settings of any cluster, beside those that only its scheduler has.

    Attributes:
        storage_root: folder that the nodes see; files go to ``storage_root/RUN/SITE``.
    """

    storage_root: StorageRoot


DEFAULTS: ClusterOptions = {
    "account": "",
    "nodes": 1,
    "walltime": None,
    "max_nodes": None,
    "max_walltime": None,
    "blocks": "pilot",
    "cores": 1,
    "memory_gb": 0,
    "gpus": 0,
    "gpu_memory_gb": 0,
    "reservation": "",
    "options": (),
    "device": None,
    "threads": None,
    "ranks_per_node": 1,
    "launch": None,
    "interface": "",
    "setup": "",
    "python_env": None,
    "environment": None,
    "command_environment": None,
    "address": "",
    "driver_interface": "",
    "poll_s": 60,
    "heartbeat_s": HEARTBEAT_S,
}


def with_defaults(settings: ClusterSettings) -> ClusterSettings:
    """Return all settings of a cluster: those of the user, the defaults for the rest."""
    return {**DEFAULTS, **settings}


def cluster_block(scheduler: SchedulerKind, queue: str, cluster: ClusterSettings) -> Block:
    """Return the batch job of a cluster.

    Args:
        scheduler: kind of the scheduler.
        queue: queue, partition or QOS; empty: the cluster's default.
        cluster: all settings.

    Raises:
        SiteConfigError: the request is beyond the limits that the user set.
    """
    nodes, walltime_s = cluster["nodes"], cluster["walltime"]
    row = Queue(  # a limit that is not set is what is requested
        name=queue or "default",
        submit_to=queue,
        min_nodes=1,
        max_nodes=cluster["max_nodes"] or nodes,
        max_walltime_s=cluster["max_walltime"] or walltime_s or HOUR,
        as_of=date.today(),
        source="your own settings",
    )
    return batch_block(
        scheduler,
        [row],
        nodes=nodes,
        walltime_s=walltime_s,
        queue=None,
        account=cluster["account"],
        blocks=cluster["blocks"],
        command_environment=cluster["command_environment"],
        reservation=cluster["reservation"],
        options=cluster["options"],
    )


def rank_cores(cluster: ClusterSettings) -> int:
    """Return the number of cores of one rank: its share of the cores of a node."""
    return max(cluster["cores"] // cluster["ranks_per_node"], 1)


def cluster_site(
    name: str,
    run_dir: Path,
    cluster: ClusterSettings,
    *,
    machine: str,
    block: Block,
    provider: Callable[[str], ExecutionProvider],
    launch: tuple[str, ...],
) -> Site:
    """Return the site of a campaign on a cluster.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign.
        cluster: all settings.
        machine: description for people.
        block: batch job.
        provider: makes the provider of the block.
        launch: command of the scheduler that starts ranks on several nodes.
    """
    device: Device = cluster["device"] or ("cuda" if cluster["gpus"] else "cpu")
    threads = cluster["threads"] or rank_cores(cluster)
    own_launch = cluster["launch"]
    return Site(
        name=name,
        machine=machine,
        route="batch",
        storage_root=site_storage(cluster["storage_root"], run_dir, name, {}),
        provider=provider,
        device=device,
        threads=threads,
        address=cluster["address"],
        driver_interface=cluster["driver_interface"],
        heartbeat_s=cluster["heartbeat_s"],
        environment={**thread_environment(threads), **(cluster["environment"] or {})},
        setup=cluster["setup"],
        python_env=cluster["python_env"],
        block=block,
        node=Node(
            cores=cluster["cores"],
            memory_bytes=round(cluster["memory_gb"] * GB),
            devices=cluster["gpus"],
            device_memory_bytes=round(cluster["gpu_memory_gb"] * GB),
            device_variable={"cpu": "", "cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}[device],
            device_names=tuple(map(str, range(cluster["gpus"]))),
        ),
        ranks=Ranks(
            per_node=cluster["ranks_per_node"],
            launch=tuple(own_launch) if own_launch is not None else launch if block.nodes > 1 else (),
            backend=BACKENDS[device],
            interface=cluster["interface"],
        ),
    )

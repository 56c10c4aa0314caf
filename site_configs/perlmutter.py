"""Perlmutter at NERSC: 1,536 nodes with four A100 of 40 GB each, under Slurm.

The queue table comes from public code that encodes NERSC's, read in August 2026: to be verified. Not in it, for want of
numbers: preempt, overrun, realtime; nor shared, which gives half a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from site_configs.library.machine import (
    GB,
    HEARTBEAT_S,
    Account,
    StorageRoot,
    Walltime,
    batch_block,
    block_provider,
    setup_lines,
    site_storage,
    thread_environment,
)
from site_configs.library.queues import HOUR, MINUTE
from site_configs.library.site import Blocks, Collection, Node, Queue, Ranks, Site

_qos = partial(Queue, as_of=date(2026, 8, 1), source="public code that encodes NERSC's table")
QUEUES = (
    _qos("debug", 1, 8, 30 * MINUTE),
    _qos("regular", 1, 1536, 48 * HOUR),
    _qos("premium", 1, 1536, 48 * HOUR, on_request=True, note="charged at a higher rate"),
    _qos("interactive", 1, 4, 4 * HOUR, on_request=True, note="for salloc"),
)
MOUNTS = {"scratch": ("/pscratch",), "community": ("/global/cfs", "/global/common")}
NODE = Node(
    cores=64,
    memory_bytes=256 * GB,
    devices=4,
    device_memory_bytes=40 * GB,
    device_variable="CUDA_VISIBLE_DEVICES",
    device_names=("0", "1", "2", "3"),
)
LAUNCH = (
    "srun",
    "--nodes={nodes}",
    "--ntasks={ranks}",
    "--ntasks-per-node={ranks_per_node}",
    "--cpus-per-task=32",
    "--cpu-bind=cores",
    "--gpus-per-node=4",
    "--gpu-bind=none",
    "--kill-on-bad-exit=1",
)


def site(
    name: str,
    run_dir: Path,
    *,
    account: Account,
    storage_root: StorageRoot,
    nodes: PositiveInt = 1,
    walltime: Walltime = None,
    queue: str | None = None,
    blocks: Blocks = "pilot",
    ranks_per_node: Annotated[PositiveInt, Field(le=4)] = 4,
    modules: Sequence[str] = ("pytorch",),
    setup: str = "",
    python_env: Path | None = None,
    address: str = "",
    constraint: str = "gpu",
) -> Site:
    """Blocks of whole GPU nodes on Perlmutter; the natural home of a driver that lives for days is its workflow QOS.

    Args:
        name: the site's name in the campaign.
        run_dir: the campaign's run directory.
        account: the project that pays; ``_g``, which GPU accounts end in, is added where it lacks.
        storage_root: a folder on scratch, where files are purged after 8 weeks, or on the community file system; files
            go to ``storage_root/RUN/SITE``.
        nodes: of a block.
        walltime: of a block, as ``6:00:00``; default the longest that the queue gives, two days.
        queue: a QOS; default ``debug`` for up to 8 nodes and half an hour, else ``regular``.
        blocks: ``pilot`` keeps one job over the rounds, ``per_round`` queues one for each.
        ranks_per_node: GPUs of a node that train.
        modules: loaded before the workers start.
        setup: shell lines after that.
        python_env: environment with this project at the site; default that of the driver.
        address: of this driver for the workers; default that of its high-speed interface.
        constraint: the kind of node; ``gpu&hbm80g`` for GPUs with 80 GB, see ``perlmutter_80gb``.
    """
    block = batch_block(
        "slurm",
        QUEUES,
        nodes=nodes,
        walltime_s=walltime,
        queue=queue,
        blocks=blocks,
        account=account if account.endswith("_g") else f"{account}_g",
    )
    directives = (
        f"--qos={block.queue.name}",
        f"--constraint={constraint}",
        "--exclusive",
        "--cpus-per-task=32",  # hardware threads
        "--gpus-per-node=4",
    )
    return Site(
        name=name,
        machine="Perlmutter (NERSC)",
        route="batch",
        storage_root=site_storage(storage_root, run_dir, name, MOUNTS),
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node),
        device="cuda",
        threads=16,
        address=address,
        driver_interface="hsn0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(16),
            "TMPDIR": "/tmp",  # in the node's memory: GPU nodes have no disk
            "NCCL_SOCKET_IFNAME": "hsn0",  # NERSC's modules bring the fast plugin
        },
        setup=setup_lines(modules, setup),
        python_env=python_env,
        block=block,
        node=NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="nccl", interface="hsn0"),
        collection=Collection("6bdc7956-fc0f-4ad2-989c-7aa5ee643a79", mapped=True),  # NERSC Perlmutter, to be verified
    )

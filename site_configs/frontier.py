"""Frontier at OLCF: 9,856 nodes with four MI250X each, eight devices of 64 GB, under Slurm.

Rules and hardware are those of OLCF's Frontier guide of 2026-07-22, modules and ranks those of its page on PyTorch.
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
from site_configs.library.queues import HOUR
from site_configs.library.site import Blocks, Collection, Node, Queue, Ranks, Site

_queue = partial(Queue, as_of=date(2026, 7, 22), source="OLCF Frontier guide")
_batch = partial(_queue, submit_to="batch", note="4 eligible jobs per user, 100 queued over all partitions")
QUEUES = (
    _batch("batch-bin-5", 1, 91, 2 * HOUR),
    _batch("batch-bin-4", 92, 183, 6 * HOUR),
    _batch("batch-bin-3", 184, 1881, 12 * HOUR),
    _batch("batch-bin-2", 1882, 5644, 12 * HOUR),
    _batch("batch-bin-1", 5645, 9472, 12 * HOUR),
    _queue("extended", 1, 64, 24 * HOUR, running_per_user=1, queued_per_user=2, note="one running, one eligible"),
    _queue("debug", 1, 9472, 2 * HOUR, queued_per_user=1, on_request=True, note="neither production nor chaining"),
)
MOUNTS = {"orion": ("/lustre/orion",)}
NODE = Node(
    cores=56,  # of 64; eight are kept for the system
    memory_bytes=512 * GB,
    devices=8,
    device_memory_bytes=64 * GB,
    device_variable="ROCR_VISIBLE_DEVICES",
    device_names=("4", "5", "2", "3", "6", "7", "0", "1"),  # 4 and 5 sit with cores 0-15, 0 and 1 with 48-63
)
LAUNCH = (
    "srun",
    "--nodes={nodes}",
    "--ntasks={ranks}",
    "--ntasks-per-node={ranks_per_node}",
    "--cpus-per-task=7",
    "--gpus-per-task=1",
    "--gpu-bind=closest",
    "--kill-on-bad-exit=1",
)
MODULES = (
    "PrgEnv-gnu/8.7.0",
    "cpe/26.03",
    "miniforge3/23.11.0-0",
    "rocm/7.1.1",
    "rccl-net-plugin",
    "craype-accel-amd-gfx90a",
)
PROXY = {
    "http_proxy": "http://proxy.ccs.ornl.gov:3128/",
    "https_proxy": "http://proxy.ccs.ornl.gov:3128/",
    "no_proxy": "localhost,127.0.0.0/8,.ccs.ornl.gov",
}
SETUP = """\
export LD_LIBRARY_PATH="$CRAY_LD_LIBRARY_PATH:$LD_LIBRARY_PATH"  # the programming environment is not the default one
unset CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES  # HIP would count them inside what ROCr has left, and see too little
unset SLURM_GPUS_PER_NODE SLURM_TRES_PER_TASK  # the job's own request must not meet that of srun
export MIOPEN_USER_DB_PATH="/tmp/$USER-miopen" MIOPEN_CUSTOM_CACHE_DIR="/tmp/$USER-miopen"  # fails on Lustre"""


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
    ranks_per_node: Annotated[PositiveInt, Field(le=8)] = 8,
    modules: Sequence[str] = MODULES,
    setup: str = "",
    python_env: Path | None = None,
    address: str = "",
) -> Site:
    """Blocks of whole nodes on Frontier; up to 64 nodes get a day in ``extended``, one job at a time.

    Args:
        name: the site's name in the campaign.
        run_dir: the campaign's run directory, on Orion.
        account: the project that pays.
        storage_root: a folder on Orion, where files are purged after 90 days; files go to ``storage_root/RUN/SITE``.
        nodes: of a block.
        walltime: of a block, as ``2:00:00``; default the longest that the queue gives.
        queue: ``batch``, ``extended`` or ``debug``; default the one that fits best of the first two.
        blocks: ``pilot`` keeps one job over the rounds, ``per_round`` queues one for each.
        ranks_per_node: devices of a node that train.
        modules: loaded before the workers start.
        setup: shell lines after that.
        python_env: environment with this project at the site; default that of the driver. OLCF: slow in a home folder.
        address: of this driver for the workers; default that of its high-speed interface.
    """
    block = batch_block("slurm", QUEUES, nodes=nodes, walltime_s=walltime, queue=queue, account=account, blocks=blocks)
    directives = (
        f"--partition={'extended' if block.queue.name == 'extended' else 'batch'}",
        *(["--qos=debug"] if block.queue.name == "debug" else []),
        "--exclusive",
        "--cpus-per-task=7",
        "--gpus-per-node=8",
        "--network=disable_rdzv_get",  # goes with rccl-net-plugin
    )
    return Site(
        name=name,
        machine="Frontier (OLCF)",
        route="batch",
        storage_root=site_storage(storage_root, run_dir, name, MOUNTS),
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node),
        device="cuda",  # ROCm behind torch's CUDA names
        threads=7,
        address=address,
        driver_interface="hsn0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(7),
            **PROXY,
            "TMPDIR": "/tmp",  # in the node's memory
            "NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3",  # OLCF: if it hangs, hsn0 alone
        },
        setup=setup_lines(modules, SETUP, setup),
        python_env=python_env,
        block=block,
        node=NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="nccl", interface="hsn0"),
        collection=Collection("36d521b3-c182-4071-b7d5-91db5d380d42", mapped=True),  # OLCF DTN (Globus 5)
    )

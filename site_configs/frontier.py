"""Frontier at OLCF: 9,856 nodes with four MI250X each, eight devices of 64 GB, under Slurm.

Rules and hardware are those of OLCF's Frontier guide of 2026-07-22, modules and ranks are those of its page on PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Unpack

from pydantic import Field, PositiveInt

from site_configs.library.machine import (
    GB,
    HEARTBEAT_S,
    FacilitySettings,
    block_provider,
    facility_block,
    setup_lines,
    site_storage,
    thread_environment,
)
from site_configs.library.queues import HOUR
from site_configs.library.site import Collection, Node, Queue, Ranks, Site

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
    cores=56,  # of 64; eight are reserved for the system
    memory_bytes=512 * GB,
    devices=8,
    device_memory_bytes=64 * GB,
    device_variable="ROCR_VISIBLE_DEVICES",
    device_names=("4", "5", "2", "3", "6", "7", "0", "1"),  # 4 and 5 are next to cores 0-15, 0 and 1 to 48-63
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
    ranks_per_node: Annotated[PositiveInt, Field(le=8)] = 8,
    modules: Sequence[str] = MODULES,
    setup: str = "",
    **settings: Unpack[FacilitySettings],
) -> Site:
    """Return the site of a campaign on whole nodes of Frontier.

    ``extended`` gives up to 64 nodes for a day, one job at a time; ``debug`` is taken only if it is named. Orion purges
    files after 90 days. OLCF: a Python environment in a home folder is slow.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign, on Orion.
        ranks_per_node: devices of each node that train.
        modules: modules that are loaded before the workers start.
        setup: shell lines after the modules.
        **settings: account, storage_root, nodes, walltime, queue and others, see ``FacilitySettings``.
    """
    block = facility_block("slurm", QUEUES, settings)
    directives = (
        f"--partition={'extended' if block.queue.name == 'extended' else 'batch'}",
        *(["--qos=debug"] if block.queue.name == "debug" else []),
        "--exclusive",
        "--cpus-per-task=7",
        "--gpus-per-node=8",
        "--network=disable_rdzv_get",  # needed by rccl-net-plugin
    )
    return Site(
        name=name,
        machine="Frontier (OLCF)",
        login_host="Frontier",
        route="batch",
        storage_root=site_storage(settings["storage_root"], run_dir, name, MOUNTS),
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node),
        device="cuda",  # ROCm under torch's CUDA names
        threads=7,
        address=settings.get("address", ""),
        driver_interface="hsn0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(7),
            **PROXY,
            "TMPDIR": "/tmp",  # in the node's memory
            "NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3",  # OLCF: if it hangs, hsn0 alone
        },
        setup=setup_lines(modules, SETUP, setup),
        python_env=settings.get("python_env"),
        block=block,
        node=NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="nccl", interface="hsn0"),
        collection=Collection("36d521b3-c182-4071-b7d5-91db5d380d42", mapped=True),  # OLCF DTN (Globus 5)
    )

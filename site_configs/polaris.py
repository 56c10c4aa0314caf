"""Polaris at ALCF: 560 nodes with four A100 of 40 GB each, under PBS Pro.

Rules, hardware and settings are those of ALCF's Polaris guide of 2026-08-19, unless another source is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Unpack

from pydantic import Field, PositiveInt

from site_configs.library.machine import (
    ALCF_PROXY,
    GB,
    HEARTBEAT_S,
    FacilitySettings,
    block_provider,
    chosen_mounts,
    facility_block,
    setup_lines,
    site_storage,
    thread_environment,
)
from site_configs.library.queues import HOUR, MINUTE
from site_configs.library.site import Collection, Node, Queue, Ranks, Site

_queue = partial(Queue, as_of=date(2026, 8, 19), source="ALCF Polaris guide")
_prod = partial(_queue, submit_to="prod", note="10 running or accruing and 100 queued jobs per project")
_backfill = partial(_queue, on_request=True, note="for projects with a negative balance, at low priority")
_debug = partial(_queue, min_walltime_s=5 * MINUTE, on_request=True)
QUEUES = (
    _debug("debug", 1, 2, 1 * HOUR, note="for tests; 24 nodes in all, 8 of them dedicated"),
    _debug("debug-scaling", 1, 10, 1 * HOUR, queued_per_user=1, note="for tests, one job of a user in any state"),
    _queue("capacity", 1, 4, 168 * HOUR, running_per_user=1, queued_per_user=2, note="32 nodes in all"),
    _prod("small", 10, 24, 3 * HOUR),
    _prod("medium", 25, 99, 6 * HOUR),
    _prod("large", 100, 496, 24 * HOUR),
    _queue("preemptable", 1, 10, 72 * HOUR, preemptable=True, note="ended without a warning; 20 jobs per project"),
    _queue("demand", 1, 56, 1 * HOUR, on_request=True, note="for admitted projects"),
    _backfill("backfill-small", 10, 24, 3 * HOUR),
    _backfill("backfill-medium", 25, 99, 6 * HOUR),
    _backfill("backfill-large", 100, 496, 24 * HOUR),
)
MOUNTS = {"home": ("/home",), "eagle": ("/eagle", "/lus/eagle")}
NODE = Node(
    cores=32,
    memory_bytes=512 * GB,
    devices=4,
    device_memory_bytes=40 * GB,
    device_variable="CUDA_VISIBLE_DEVICES",
    device_names=("3", "2", "1", "0"),  # GPU 3 is next to cores 0-7, GPU 0 to cores 24-31
)
# rank 0 with GPU 0 and so on, each on the cores next to its GPU
LAUNCH = ("mpiexec", "-n", "{ranks}", "--ppn", "{ranks_per_node}", "--cpu-bind", "list:24-31:16-23:8-15:0-7")
# How NCCL reaches other nodes: ALCF's page on NCCL. With its plugin for libfabric it is 2 to 3 times faster, and hangs
# with some programs; ALCF's conda modules set these variables since October 2024.
Nccl = Literal["module", "ofi", "tcp"]
OFI = """\
export NCCL_NET="AWS Libfabric" NCCL_NET_GDR_LEVEL=PHB NCCL_CROSS_NIC=1 NCCL_COLLNET_ENABLE=1
export FI_CXI_DISABLE_HOST_REGISTER=1 FI_MR_CACHE_MONITOR=userfaultfd FI_CXI_DEFAULT_CQ_SIZE=131072
export LD_LIBRARY_PATH="/soft/libraries/aws-ofi-nccl/v1.9.1-aws/lib:/soft/libraries/hwloc/lib:$LD_LIBRARY_PATH\""""
NCCL_LINES: dict[Nccl, str] = {
    "module": "",
    "ofi": OFI,
    "tcp": "unset NCCL_NET NCCL_NET_GDR_LEVEL NCCL_CROSS_NIC NCCL_COLLNET_ENABLE",
}


def site(
    name: str,
    run_dir: Path,
    *,
    filesystems: str = "home:eagle",
    ranks_per_node: Annotated[PositiveInt, Field(le=4)] = 4,
    modules: Sequence[str] = ("conda",),
    setup: str = "conda activate",
    nccl: Nccl = "module",
    **settings: Unpack[FacilitySettings],
) -> Site:
    """Return the site of a campaign on whole nodes of Polaris; ``capacity`` gives up to 4 nodes for up to a week.

    Run the driver on a login node, in a terminal multiplexer.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign, on one of ``filesystems``.
        filesystems: file systems that the job needs; without them it would not start, or not see its files.
        ranks_per_node: GPUs of each node that train.
        modules: modules that are loaded before the workers start.
        setup: shell lines after the modules.
        nccl: network of NCCL between nodes: ``ofi`` is libfabric, ``tcp`` slower and without its hangs, ``module`` what
            the modules set.
        **settings: account, storage_root, nodes, walltime, queue and others, see ``FacilitySettings``.
    """
    block = facility_block("pbs", QUEUES, settings)
    directives = ("-l place=scatter", f"-l filesystems={filesystems}")
    return Site(
        name=name,
        machine="Polaris (ALCF)",
        login_host="Polaris",
        route="batch",
        storage_root=site_storage(settings["storage_root"], run_dir, name, chosen_mounts(filesystems, MOUNTS)),
        provider=block_provider(block, directives, site=name, cores=64, select="ngpus=4:system=polaris"),
        device="cuda",
        threads=8,
        address=settings.get("address", ""),
        driver_interface="bond0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(8),
            **ALCF_PROXY,
            "TMPDIR": "/local/scratch",  # short, on the node: PBS's default is too long a path for sockets
            "NCCL_SOCKET_IFNAME": "hsn0",
        },
        setup="\n".join(["module use /soft/modulefiles", setup_lines(modules, setup, NCCL_LINES[nccl])]),
        python_env=settings.get("python_env"),
        block=block,
        node=NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="nccl", interface="hsn0"),
        collection=Collection("05d2c76a-e867-4f67-aa57-76edeb0beda0", Path("/eagle"), mapped=True),  # alcf#dtn_eagle
    )

"""Perlmutter at NERSC: 1,536 nodes with four A100 of 40 GB each and 256 with four of 80 GB, under Slurm.

The queue table comes from public code that encodes NERSC's, read in August 2026: to be verified. Left out are
shared, which gives half a node, and the QOS of single projects, such as realtime: ``options: [--qos=realtime]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Unpack

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
from site_configs.library.queues import HOUR, MINUTE
from site_configs.library.site import Collection, Node, Queue, Ranks, Site

_UNSURE = {"source": "name from NERSC's pages, limits to be verified"}
# squeue shows the QOS of GPU jobs as gpu_regular and so on, and the partition gpu_ss11 (public job logs of 2026)
_FOR_TESTS = "for tests: production runs and chains of jobs may cost the account (NERSC queue policy)"


def _qos(name: str, nodes: int, walltime_s: int, **rules: Any) -> Queue:
    dated: dict[str, Any] = {"as_of": date(2026, 8, 1), "source": "public code that encodes NERSC's table"} | rules
    return Queue(name, 1, nodes, walltime_s, also=(f"gpu_{name}",), **dated)


QUEUES = (
    _qos("regular", 1536, 48 * HOUR),
    _qos("debug", 8, 30 * MINUTE, on_request=True, note=_FOR_TESTS),
    _qos("premium", 1536, 48 * HOUR, on_request=True, note="charged at a higher rate"),
    _qos("interactive", 4, 4 * HOUR, on_request=True, only_interactive=True, note="it is for salloc"),
    _qos("preempt", 128, 48 * HOUR, on_request=True, preemptable=True, note="may be ended after two hours", **_UNSURE),
    _qos("overrun", 1536, 48 * HOUR, on_request=True, note="for projects without hours, at low priority", **_UNSURE),
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
NODES_80GB = 256
QUEUES_80GB = tuple(replace(row, max_nodes=min(row.max_nodes, NODES_80GB)) for row in QUEUES)
NODE_80GB = replace(NODE, device_memory_bytes=80 * GB)
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
    ranks_per_node: Annotated[PositiveInt, Field(le=4)] = 4,
    modules: Sequence[str] = ("pytorch",),
    setup: str = "",
    constraint: str = "gpu",
    **settings: Unpack[FacilitySettings],
) -> Site:
    """Return the site of a campaign on whole GPU nodes of Perlmutter.

    The default queue is ``regular``; ``debug`` is taken only if it is named. GPU accounts end in ``_g``, which is added
    if it is missing. Scratch is purged after 8 weeks. NERSC has a workflow QOS for a driver that runs
    for days.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign.
        ranks_per_node: GPUs of each node that train.
        modules: modules that are loaded before the workers start.
        setup: shell lines after the modules.
        constraint: kind of node; ``gpu&hbm80g`` for GPUs with 80 GB, as ``perlmutter_80gb`` sets it.
        **settings: account, storage_root, nodes, walltime, queue and others, see ``FacilitySettings``.
    """
    account = settings["account"]
    settings["account"] = account if account.endswith("_g") else f"{account}_g"
    large = "hbm80g" in constraint
    block = facility_block("slurm", QUEUES_80GB if large else QUEUES, settings)
    directives = (
        f"--qos={block.queue.name}",
        f"--constraint={constraint}",
        "--exclusive",
        "--cpus-per-task=32",  # hardware threads
        "--gpus-per-node=4",
    )
    return Site(
        name=name,
        machine=f"Perlmutter{' 80 GB' if large else ''} (NERSC)",
        login_host="Perlmutter",
        route="batch",
        storage_root=site_storage(settings["storage_root"], run_dir, name, MOUNTS),
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node),
        device="cuda",
        threads=16,
        address=settings.get("address", ""),
        driver_interface="hsn0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(16),
            "TMPDIR": "/tmp",  # in the node's memory: GPU nodes have no disk
            "NCCL_SOCKET_IFNAME": "hsn0",  # NERSC's modules contain the fast plugin
        },
        setup=setup_lines(modules, setup),
        python_env=settings.get("python_env"),
        block=block,
        node=NODE_80GB if large else NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="nccl", interface="hsn0"),
        collection=Collection("6bdc7956-fc0f-4ad2-989c-7aa5ee643a79", mapped=True),  # NERSC Perlmutter, to be verified
    )

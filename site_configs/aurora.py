"""Aurora at ALCF: 10,624 nodes with six Max 1550 each, twelve devices of 64 GB, under PBS Pro.

Rules, hardware and settings are those of ALCF's Aurora guide of 2026-08-19, unless another source is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Unpack

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
from site_configs.library.queues import HOUR
from site_configs.library.site import Collection, Node, Queue, Ranks, Site

_queue = partial(Queue, as_of=date(2026, 8, 19), source="ALCF Aurora guide")
_prod = partial(_queue, submit_to="prod", note="10 running or accruing and 100 queued jobs per project")
_debug = partial(_queue, queued_per_user=1, on_request=True)
QUEUES = (
    _debug("debug", 1, 2, 1 * HOUR, note="for tests, one job of a user in any state; 64 nodes, shared"),
    _debug("debug-scaling", 2, 256, 1 * HOUR, note="for tests, one job of a user in any state"),
    _queue("capacity", 1, 16, 168 * HOUR, running_per_user=2, queued_per_user=5, note="512 nodes in all"),
    _prod("small", 256, 1024, 12 * HOUR),
    _prod("medium", 1025, 1999, 18 * HOUR),
    _prod("large", 2000, 10624, 24 * HOUR),
    _queue("next-eval", 1, 2600, 24 * HOUR, on_request=True, note="before a new image; the guide gives no hours"),
    _queue("visualization", 1, 32, 8 * HOUR, on_request=True, note="for admitted projects"),
)
MOUNTS = {"home": ("/home",), "flare": ("/flare", "/lus/flare"), "daos_user": ()}
NODE = Node(
    cores=104,
    memory_bytes=1024 * GB,
    devices=12,
    device_memory_bytes=64 * GB,
    device_variable="ZE_AFFINITY_MASK",
    device_names=tuple(map(str, range(12))),  # as FLAT numbers them
)
# Eight cores per tile, close to it: seven for the rank, and the first for the worker thread of oneCCL, which would take
# one of the last cores of the node, and so of another rank. Cores 0 and 52 are left to the operating system.
CCL_CORES = (1, 9, 17, 25, 33, 41, 53, 61, 69, 77, 85, 93)
CORES = ":".join(f"{first + 1}-{first + 7}" for first in CCL_CORES)
LAUNCH = ("mpiexec", "-n", "{ranks}", "--ppn", "{ranks_per_node}", "--cpu-bind", f"list:{CORES}")
THREADS = 7
# ALCF's page on oneCCL, the least that a training needs, and PALS_PMI for the MPI that oneCCL starts with
ONECCL = {
    "CCL_PROCESS_LAUNCHER": "pmix",
    "CCL_ATL_TRANSPORT": "mpi",
    "CCL_KVS_MODE": "mpi",
    "FI_MR_CACHE_MONITOR": "userfaultfd",
    "PALS_PMI": "pmix",
    "CCL_WORKER_COUNT": "1",
}


def site(
    name: str,
    run_dir: Path,
    *,
    filesystems: str = "home:flare",
    ranks_per_node: Annotated[PositiveInt, Field(le=12)] = 12,
    modules: Sequence[str] = ("frameworks",),
    setup: str = "",
    **settings: Unpack[FacilitySettings],
) -> Site:
    """Return the site of a campaign on whole nodes of Aurora; ``capacity`` gives up to 16 nodes for up to a week.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign, on one of ``filesystems``.
        filesystems: file systems that the job needs; without them it would not start, or not see its files.
        ranks_per_node: tiles of each node that train.
        modules: modules that are loaded before the workers start; torch with xpu and xccl is in ``frameworks``, from
            2025.3.1.
        setup: shell lines after the modules.
        **settings: account, storage_root, nodes, walltime, queue and others, see ``FacilitySettings``.
    """
    block = facility_block("pbs", QUEUES, settings)
    directives = ("-l place=scatter", f"-l filesystems={filesystems}")
    return Site(
        name=name,
        machine="Aurora (ALCF)",
        login_host="Aurora",
        route="batch",
        storage_root=site_storage(settings["storage_root"], run_dir, name, chosen_mounts(filesystems, MOUNTS)),
        provider=block_provider(block, directives, site=name, cores=208),
        device="xpu",
        threads=THREADS,
        address=settings.get("address", ""),
        driver_interface="hsn0",
        heartbeat_s=HEARTBEAT_S,
        environment={
            **thread_environment(THREADS),
            **ALCF_PROXY,
            **ONECCL,
            "CCL_WORKER_AFFINITY": ",".join(map(str, CCL_CORES[:ranks_per_node])),
            "TMPDIR": "/tmp",  # short, in the node's memory: PBS's default is too long a path for sockets
            "ZE_FLAT_DEVICE_HIERARCHY": "FLAT",  # a tile is a device; names such as 0.1 need COMPOSITE
        },
        setup="\n".join(["module use /soft/modulefiles", setup_lines(modules, setup)]),
        python_env=settings.get("python_env"),
        block=block,
        node=NODE,
        ranks=Ranks(per_node=ranks_per_node, launch=LAUNCH, backend="xccl", interface="hsn0"),
        # alcf#dtn_flare, to be verified
        collection=Collection("f39a7a0f-5bfc-46ce-9615-ba9f8592814f", Path("/flare"), mapped=True),
    )

"""What the files of batch machines share: types of their settings, the block, storage, start lines, the provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from site_configs.library.errors import SiteConfigError
from site_configs.library.queues import HOUR, choose_queue, longest_walltime, parse_walltime
from site_configs.library.site import Backend, Block, Blocks, Device, Node, Queue, SchedulerKind

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

GB = 10**9
ROUND_S = HOUR  # what a block for one round asks for where nothing is said
HEARTBEAT_S = 30
BACKENDS: Mapping[Device, Backend] = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
# The proxy of ALCF's compute nodes (ALCF guides of 2026-08-19)
ALCF_PROXY = {
    "http_proxy": "http://proxy.alcf.anl.gov:3128",
    "https_proxy": "http://proxy.alcf.anl.gov:3128",
    "no_proxy": "localhost,127.0.0.1,.alcf.anl.gov",
}

Account = Annotated[str, Field(pattern=r"^[\w.-]+$", description="the project that pays")]
StorageRoot = Annotated[Path, Field(description="a folder at the site, seen by its compute nodes, for data and models")]
Walltime = Annotated[int | None, BeforeValidator(lambda value: None if value is None else parse_walltime(value))]


def batch_block(
    scheduler: SchedulerKind,
    queues: Sequence[Queue],
    *,
    nodes: int,
    walltime_s: int | None,
    queue: str | None,
    account: str,
    blocks: Blocks,
    command_environment: Mapping[str, str] | None = None,
) -> Block:
    """The batch job for a request, refused here if the facility would refuse it.

    Without a walltime a pilot block gets the longest that the queues give to so many nodes, because it is handed back
    when the campaign ends; a block for one round gets an hour, or less where the queue has no more.

    Raises:
        SiteConfigError: no queue takes it; the text tells the rule and the nearest request that is taken.
    """
    if walltime_s is None:
        longest_s = longest_walltime(queues, nodes, queue)
        walltime_s = longest_s if blocks == "pilot" else min(ROUND_S, longest_s)
    row = choose_queue(queues, nodes, walltime_s, queue)
    return Block(scheduler, row, nodes, walltime_s, account, blocks, command_environment or {})


def own_queue(
    name: str, nodes: int, walltime_s: int | None, max_nodes: int | None, max_walltime_s: int | None
) -> Queue:
    """The one row of the table of a cluster that the user describes; a limit that is not set is what is asked for."""
    return Queue(
        name=name or "default",
        submit_to=name,
        min_nodes=1,
        max_nodes=max_nodes or nodes,
        max_walltime_s=max_walltime_s or walltime_s or HOUR,
        as_of=date.today(),
        source="your own settings",
    )


def own_node(device: Device, cores: int, memory_gb: float, gpus: int, gpu_memory_gb: float) -> Node:
    """A node of such a cluster, as far as it is described."""
    return Node(
        cores=cores,
        memory_bytes=round(memory_gb * GB),
        devices=gpus,
        device_memory_bytes=round(gpu_memory_gb * GB),
        device_variable={"cpu": "", "cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}[device],
        device_names=tuple(map(str, range(gpus))),
    )


def site_storage(storage_root: Path, run_dir: Path, name: str, mounts: Mapping[str, Sequence[str]]) -> Path:
    """A site's own folder in a campaign: ``storage_root/RUN/SITE``, so that neither campaigns nor sites mix.

    Args:
        storage_root: as the user set it.
        run_dir: of the campaign; its last part is the campaign's name there. Two run directories of one name must not
            share a storage root.
        name: of the site.
        mounts: where the file systems that the block asks for are mounted; empty: not known here.

    Raises:
        SiteConfigError: not an absolute path, or on no file system of the block.
    """
    if not storage_root.is_absolute():
        raise SiteConfigError(f"storage_root: {storage_root} is relative; give the whole path at the site")
    if mounts and not any(storage_root.is_relative_to(mount) for paths in mounts.values() for mount in paths):
        known = "; ".join(f"{system}: {', '.join(paths)}" for system, paths in mounts.items())
        raise SiteConfigError(f"storage_root: {storage_root} is on no file system that the block asks for ({known})")
    return storage_root / run_dir.absolute().name / name


def chosen_mounts(filesystems: str, mounts: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The mounts of a ``filesystems`` line such as ``home:eagle``.

    Raises:
        SiteConfigError: the machine has no file system of that name.
    """
    chosen = filesystems.split(":")
    for system in chosen:
        if system not in mounts:
            raise SiteConfigError(f"filesystems: there is no {system!r}; there are {', '.join(mounts)}")
    return {system: mounts[system] for system in chosen}


def setup_lines(modules: Iterable[str], *lines: str) -> str:
    """Shell lines: modules first, then the lines that are not empty."""
    return "\n".join([*(f"module load {module}" for module in modules), *filter(None, lines)])


def thread_environment(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def block_provider(
    block: Block,
    directives: Sequence[str],
    *,
    site: str,
    ranks_per_node: int = 1,
    poll_s: int = 60,
    cores: int = 1,
    select: str = "",
) -> Callable[[str], ExecutionProvider]:
    """What makes the provider of a block once the worker's start lines are known.

    Args:
        block: the batch job.
        directives: of the script, beyond those that follow from the block.
        site: the site's name; its jobs are called by it until the campaign gives its own prefix.
        ranks_per_node: that a node is asked for; of use to Slurm alone.
        poll_s: between questions for the block's state.
        cores, select: of each node, as PBS selects it; Slurm has directives for both.
    """
    # a job that the scheduler starts again by itself would be two blocks under one name
    once = "--no-requeue" if block.scheduler == "slurm" else "-r n"
    settings: dict[str, Any] = {"directives": (once, *directives), "job_prefix": f"cf-{site}", "poll_s": poll_s}
    if block.scheduler == "pbs":
        return partial(_pbs_provider, block, **settings, cores=cores, select=select)
    return partial(_slurm_provider, block, **settings, tasks_per_node=ranks_per_node)


def _slurm_provider(block: Block, worker_init: str, **settings: Any) -> ExecutionProvider:
    from site_configs.library.providers import SlurmBlocks

    return SlurmBlocks(block, worker_init=worker_init, **settings)


def _pbs_provider(block: Block, worker_init: str, **settings: Any) -> ExecutionProvider:
    from site_configs.library.providers import PbsBlocks

    return PbsBlocks(block, worker_init=worker_init, **settings)

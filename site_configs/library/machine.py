"""Parts that the files of batch machines share: common settings, block, storage, shell lines, provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt
from typing_extensions import TypedDict  # before Python 3.12 pydantic reads only this one

from site_configs.library.errors import SiteConfigError
from site_configs.library.options import checked_options, own_queue
from site_configs.library.queues import (
    HOUR,
    choose_queue,
    is_reservation,
    longest_walltime,
    parse_walltime,
    reserved_queue,
)
from site_configs.library.site import Backend, Block, Blocks, Device, Queue, SchedulerKind

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

GB = 10**9
ROUND_S = HOUR  # walltime of a block for one round, if none is set
HEARTBEAT_S = 600  # a block costs hours in a queue: a login node that hangs for minutes may not end it
BACKENDS: Mapping[Device, Backend] = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
# The proxy of ALCF's compute nodes (ALCF guides of 2026-08-19)
ALCF_PROXY = {
    "http_proxy": "http://proxy.alcf.anl.gov:3128",
    "https_proxy": "http://proxy.alcf.anl.gov:3128",
    "no_proxy": "localhost,127.0.0.1,.alcf.anl.gov",
}

# Accounts may be numbers; nothing in a name may end the line of a batch script that it stands in
_text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
Name = Annotated[str, _text, Field(pattern=r"^[\w.@:+/,-]*$")]
Options = Annotated[Sequence[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Account = Annotated[str, _text, Field(pattern=r"^[\w.-]+$", description="the project that pays")]
StorageRoot = Annotated[Path, Field(description="a folder at the site, seen by its compute nodes, for data and models")]
Walltime = Annotated[int | None, BeforeValidator(lambda value: None if value is None else parse_walltime(value))]


class BlockSettings(TypedDict, total=False):
    """Settings of every batch machine.

    Attributes:
        nodes: nodes per block; default 1.
        walltime: walltime of a block, such as ``6:00:00``; default the longest that the queue allows.
        blocks: ``pilot`` (default) keeps one batch job over the rounds, ``per_round`` submits one for each round.
        reservation: reservation of the facility that its blocks run in; needs a walltime that ends within it.
        options: further options of the batch script, such as ``-C nvme``, ``--mail-type=END`` or ``-l x=1``; what
            would break a pilot job is refused.
        python_env: environment with this project at the site; default that of the driver.
        address: address of the driver for the workers; default that of its high-speed interface.
    """

    nodes: PositiveInt
    walltime: Walltime
    blocks: Blocks
    reservation: Name
    options: Options
    python_env: Path | None
    address: str


class _FacilityRequired(TypedDict):
    account: Account
    storage_root: StorageRoot


class FacilitySettings(_FacilityRequired, BlockSettings, total=False):
    """Settings of the machines of the facilities, beside those in a machine's own file.

    Attributes:
        account: project that pays; required.
        storage_root: folder at the site, seen by its compute nodes; files go to ``storage_root/RUN/SITE``; required.
        queue: name of a row of the machine's table ``QUEUES``, or what several rows are submitted to; default the row
            that fits best; under PBS also the id of a reservation, such as ``R123456``.
    """

    queue: Annotated[str | None, _text]


def facility_block(scheduler: SchedulerKind, queues: Sequence[Queue], settings: FacilitySettings) -> Block:
    """Return the batch job of a site's settings; see ``batch_block``."""
    return batch_block(
        scheduler,
        queues,
        nodes=settings.get("nodes", 1),
        walltime_s=settings.get("walltime"),
        queue=settings.get("queue"),
        account=settings["account"],
        blocks=settings.get("blocks", "pilot"),
        reservation=settings.get("reservation", ""),
        options=settings.get("options", ()),
    )


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
    reservation: str = "",
    options: Sequence[str] = (),
) -> Block:
    """Return the batch job of a request, refused here if the facility would refuse it.

    Without a walltime a pilot block gets the longest that the queues allow for this number of nodes, because it is
    cancelled when the campaign ends; a block for one round gets an hour, or less if the queue allows less.

    Raises:
        SiteConfigError: no queue takes the request; the message gives the rule and the nearest request that is taken.
    """
    own, options = own_queue(scheduler, options)
    if own:
        queues, queue = [_unlisted(own, nodes, walltime_s)], None
    if scheduler == "pbs" and is_reservation(queue) and not any(row.name == queue for row in queues):
        reservation, queue = reservation or str(queue), None
    if reservation and walltime_s is None:
        raise SiteConfigError(f"walltime: name one that ends within the reservation {reservation}")
    if walltime_s is None:
        longest_s = longest_walltime(queues, nodes, queue)
        walltime_s = longest_s if blocks == "pilot" else min(ROUND_S, longest_s)
    if reservation:
        row = reserved_queue(scheduler, queues, nodes, walltime_s, queue, reservation)
    else:
        row = choose_queue(queues, nodes, walltime_s, queue)
    return Block(
        scheduler=scheduler,
        queue=row,
        nodes=nodes,
        walltime_s=walltime_s,
        account=account,
        reuse=blocks,
        command_environment=command_environment or {},
        options=checked_options(scheduler, options),
        reservation=reservation,
    )


def _unlisted(name: str, nodes: int, walltime_s: int | None) -> Queue:
    """Return the row of a queue that is not in the machine's table."""
    if walltime_s is None:
        raise SiteConfigError(f"walltime: name one for the queue {name}, whose limits are not known here")
    return Queue(name, 1, nodes, walltime_s, date.today(), "your own options")


def site_storage(storage_root: Path, run_dir: Path, name: str, mounts: Mapping[str, Sequence[str]]) -> Path:
    """Return the folder of one site in one campaign: ``storage_root/RUN/SITE``.

    Args:
        storage_root: folder that the user set.
        run_dir: run directory of the campaign; its last part is RUN. Two run directories of the same name must not
            share a storage root.
        name: name of the site.
        mounts: mount points of the file systems that the block requests; empty: unknown, nothing is checked.

    Raises:
        SiteConfigError: the path is not absolute, or on no file system of the block.
    """
    if not storage_root.is_absolute():
        raise SiteConfigError(f"storage_root: {storage_root} is relative; give the whole path at the site")
    if mounts and not any(storage_root.is_relative_to(mount) for paths in mounts.values() for mount in paths):
        known = "; ".join(f"{system}: {', '.join(paths)}" for system, paths in mounts.items())
        raise SiteConfigError(f"storage_root: {storage_root} is on no file system that the block requests ({known})")
    return storage_root / run_dir.absolute().name / name


def chosen_mounts(filesystems: str, mounts: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the mount points of a ``filesystems`` line such as ``home:eagle``.

    Raises:
        SiteConfigError: the machine has no file system of that name.
    """
    chosen = filesystems.split(":")
    for system in chosen:
        if system not in mounts:
            raise SiteConfigError(f"filesystems: {system!r} is unknown; known: {', '.join(mounts)}")
    return {system: mounts[system] for system in chosen}


def setup_lines(modules: Iterable[str], *lines: str) -> str:
    """Return shell lines: first the modules, then the lines that are not empty."""
    return "\n".join([*(f"module load {module}" for module in modules), *filter(None, lines)])


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that set the number of threads of a process."""
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
    """Return a function that makes the provider of a block from the worker's start lines.

    Args:
        block: batch job.
        directives: directives of the script, beyond those that follow from the block.
        site: name of the site; it begins the names of its batch jobs until the campaign sets its own prefix.
        ranks_per_node: tasks per node that Slurm is asked for.
        poll_s: seconds between two queries of the block's state.
        cores: cores of each node, for PBS.
        select: more resources of each node, for PBS; Slurm has directives for both.
    """
    # a job that the scheduler restarts by itself would be two blocks under one name
    once = "--no-requeue" if block.scheduler == "slurm" else "-r n"
    reserved = [f"--reservation={block.reservation}"] if block.reservation and block.scheduler == "slurm" else []
    lines = (once, *directives, *reserved, *checked_options(block.scheduler, block.options, written=directives))
    for line in lines:
        if "\n" in line:
            raise SiteConfigError(f"{line!r} has a line break, which would end the line of a batch script")
    settings: dict[str, Any] = {"directives": lines, "job_prefix": f"cf-{site}", "poll_s": poll_s}
    if block.scheduler == "pbs":
        return partial(_pbs_provider, block, **settings, cores=cores, select=select)
    return partial(_slurm_provider, block, **settings, tasks_per_node=ranks_per_node)


def _slurm_provider(block: Block, worker_init: str, **settings: Any) -> ExecutionProvider:
    from site_configs.library.providers import SlurmBlocks

    return SlurmBlocks(block, worker_init=worker_init, **settings)


def _pbs_provider(block: Block, worker_init: str, **settings: Any) -> ExecutionProvider:
    from site_configs.library.providers import PbsBlocks

    return PbsBlocks(block, worker_init=worker_init, **settings)

"""What a campaign needs to know about a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from site_configs.library.errors import SiteConfigError

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

Route = Literal["local", "batch", "globus"]
Carrier = Literal["copy", "shared", "globus"]
Device = Literal["cpu", "cuda", "xpu"]
Backend = Literal["gloo", "nccl", "xccl"]
SchedulerKind = Literal["slurm", "pbs"]
Blocks = Literal["pilot", "per_round"]


@dataclass(frozen=True)
class Queue:
    """One row of a facility's queue table: what is asked for by this name, and what it admits.

    Attributes:
        name: of the queue (PBS), partition or QOS (Slurm).
        submit_to: the name to submit to, where this one is reached only through another; None: its own name.
        min_nodes, max_nodes: of one job.
        min_walltime_s, max_walltime_s: of one job.
        running_per_user, queued_per_user: jobs of one user that may run, or be there in any state; None: no such rule.
        preemptable: jobs may be ended for others at any time.
        on_request: only for those the facility has admitted; never chosen unless it is named.
        note: what else a person should know.
        as_of, source: when and where this was read.
    """

    name: str
    min_nodes: int
    max_nodes: int
    max_walltime_s: int
    as_of: date
    source: str
    submit_to: str | None = None
    min_walltime_s: int = 0
    running_per_user: int | None = None
    queued_per_user: int | None = None
    preemptable: bool = False
    on_request: bool = False
    note: str = ""


@dataclass(frozen=True)
class Node:
    """The hardware of one compute node; a device is what torch sees as one (a GCD, a tile, a GPU)."""

    cores: int
    memory_bytes: int
    devices: int = 0
    device_memory_bytes: int = 0
    device_variable: str = ""  # hides devices from a process
    device_names: tuple[str, ...] = ()  # in the order that suits the cores


@dataclass(frozen=True)
class Block:
    """The batch job that a site's workers live in.

    Attributes:
        scheduler: whose commands submit it.
        queue: the row of the facility's table it goes by.
        nodes: of one block.
        walltime_s: of one block.
        account: the allocation it is charged to; empty where the facility needs none.
        reuse: ``pilot`` keeps one block over rounds, ``per_round`` gives it back after each.
        command_environment: variables for the scheduler's commands, where a host serves several clusters.
    """

    scheduler: SchedulerKind
    queue: Queue
    nodes: int
    walltime_s: int
    account: str = ""
    reuse: Blocks = "pilot"
    command_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """The Globus Compute endpoints of a site that is not ours to log into.

    Attributes:
        training: id of the endpoint whose blocks train.
        files: id of an endpoint on a login node, which looks at files while the other one queues; empty: none.
        silence_s: a task that has begun and gives no sign of life for so long is asked for again.
        queue_s: the same for one that has not begun: the longest wait in a queue.
    """

    training: str
    files: str = ""
    silence_s: float = 1800.0
    queue_s: float = 14 * 24 * 3600.0


@dataclass(frozen=True)
class Collection:
    """A Globus collection.

    Attributes:
        id: of the collection.
        folder: of the file system, which the collection shows as its ``/``.
        mapped: it shows everybody what their own account may see; a guest collection shows what its maker shares.
    """

    id: str
    folder: Path = Path("/")
    mapped: bool = False

    def path_of(self, path: Path) -> str:
        """A path of the file system as the collection names it.

        Raises:
            SiteConfigError: it lies outside of what the collection shows.
        """
        if not path.is_relative_to(self.folder):
            raise SiteConfigError(f"{path} is not below {self.folder}, which is all that collection {self.id} shows")
        return f"/{path.relative_to(self.folder)}"

    def shares(self, path: Path) -> bool:
        """Whether it opens a path of the file system to others, who may read it and write there."""
        if self.mapped or self.folder == Path("/"):
            return False
        return Path(normpath(path)).is_relative_to(normpath(self.folder))


@dataclass(frozen=True)
class Ranks:
    """How training is spread over the devices of a block.

    Attributes:
        per_node: ranks on each node.
        launch: command that starts ``{nodes}`` x ``{ranks_per_node}`` = ``{ranks}`` ranks of the program that follows
            it, word for word, with these places filled in; empty: torch's own launcher, for one node.
        backend: of torch.distributed.
        interface: network interface that the ranks meet on; empty: any.
    """

    per_node: int = 1
    launch: tuple[str, ...] = ()
    backend: Backend = "gloo"
    interface: str = ""


@dataclass(frozen=True)
class Site:
    """One facility as the campaign sees it.

    Attributes:
        name: the site's name in the campaign.
        machine: the description it was made from, for people.
        route: how work reaches it.
        storage_root: where the site keeps its shard, models, updates and manifests for this campaign.
        provider: makes the Parsl provider that starts its blocks; called when the campaign starts, not before.
        device: torch device of a worker: cpu, cuda (also ROCm) or xpu.
        threads: torch threads of a worker.
        address: where workers find the driver; empty: that of ``driver_interface`` on this host.
        driver_interface: network interface of the driver's host that compute nodes reach.
        heartbeat_s: after twice this time without a word a block counts as lost.
        environment: variables set for the workers before Python starts.
        setup: shell lines before the workers start: modules, activation of the site's own environment.
        python_env: folder of the environment whose ``bin`` leads PATH at the site; None: that of the driver, which
            the site must then see.
        block: the batch job, for the route ``batch``.
        node: the hardware, where it is known; the memory plan is made for it.
        ranks: how training is spread over the block.
        collection: the Globus collection that holds ``storage_root``.
        carrier: how artifacts reach the site: ``copy`` and ``shared`` where this machine sees its storage (``shared``
            links files instead of copying them), ``globus`` by Globus Transfer.
        endpoint: the Globus Compute endpoints, for the route ``globus``.
    """

    name: str
    machine: str
    route: Route
    storage_root: Path
    provider: Callable[[str], ExecutionProvider]
    device: Device = "cpu"
    threads: int = 1
    address: str = "127.0.0.1"
    driver_interface: str = ""
    heartbeat_s: int = 10
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""
    python_env: Path | None = None
    block: Block | None = None
    node: Node | None = None
    ranks: Ranks = field(default_factory=Ranks)
    collection: Collection | None = None
    carrier: Carrier = "copy"
    endpoint: Endpoint | None = None

    @property
    def own_block(self) -> Block | None:
        """The batch job, where it is this driver that submits it; an endpoint submits its own."""
        return self.block if self.route == "batch" else None

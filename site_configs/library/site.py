"""Description of one machine for a campaign: queues, nodes, batch job, ranks, collection, endpoint."""

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
EndpointTemplate = Literal["crossfed", "alcf"]


@dataclass(frozen=True)
class Queue:
    """One row of a facility's queue table: a name and the limits of its batch jobs.

    Attributes:
        name: name of the queue (PBS), partition or QOS (Slurm).
        submit_to: name to submit to, if this queue is reached only through another; None: its own name.
        min_nodes, max_nodes: nodes of one job.
        min_walltime_s, max_walltime_s: walltime of one job in seconds.
        running_per_user, queued_per_user: jobs of one user that may run, or exist in any state; None: no limit.
        preemptable: jobs may be ended for others at any time.
        on_request: chosen only by its name: for projects that the facility has admitted, or for tests.
        only_interactive: takes no batch jobs.
        also: further names under which the scheduler keeps its jobs.
        note: further rules, for people.
        as_of, source: date and source of this row.
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
    only_interactive: bool = False
    also: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Node:
    """Hardware of one compute node; a device is one device of torch (a GCD, a tile, a GPU)."""

    cores: int
    memory_bytes: int
    devices: int = 0
    device_memory_bytes: int = 0
    device_variable: str = ""  # environment variable that selects the devices of a process
    device_names: tuple[str, ...] = ()  # in the order of the cores next to them


@dataclass(frozen=True)
class Block:
    """Batch job in which the workers of a site run.

    Attributes:
        scheduler: kind of the scheduler.
        queue: row of the facility's table.
        nodes: nodes of one block.
        walltime_s: walltime of one block in seconds.
        account: allocation that is charged; empty if the facility needs none.
        reuse: ``pilot`` keeps one block over the rounds, ``per_round`` ends it after each round.
        options: further lines of its script, as the user wrote them.
        reservation: reservation that it runs in; empty: none.
        command_environment: variables of the scheduler's commands, if a host serves several clusters.
    """

    scheduler: SchedulerKind
    queue: Queue
    nodes: int
    walltime_s: int
    account: str = ""
    reuse: Blocks = "pilot"
    command_environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    reservation: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Globus Compute endpoints of a site.

    Attributes:
        training: id of the endpoint whose blocks train.
        files: id of an endpoint on a login node, which reads files while the other one queues; empty: none.
        silence_s: time without liveness after which a started task is submitted again.
        queue_s: the same for a task that has not started: the longest wait in a queue.
        template: whose names for the values of a block it takes: ``crossfed`` for one that was set up with this
            project, or ``alcf``, see ``facility_endpoints``.
    """

    training: str
    files: str = ""
    silence_s: float = 1800.0
    queue_s: float = 14 * 24 * 3600.0
    template: EndpointTemplate = "crossfed"


@dataclass(frozen=True)
class Collection:
    """A Globus collection.

    Attributes:
        id: id of the collection.
        folder: folder of the file system that the collection shows as its ``/``.
        mapped: it shows each user what their own account may read; a guest collection shows what its owner shares.
    """

    id: str
    folder: Path = Path("/")
    mapped: bool = False

    def path_of(self, path: Path) -> str:
        """Return the path in the collection of a path of the file system.

        Raises:
            SiteConfigError: the collection does not show it.
        """
        if not path.is_relative_to(self.folder):
            raise SiteConfigError(f"{path} is not below {self.folder}, the folder that collection {self.id} shows")
        return f"/{path.relative_to(self.folder)}"

    def shares(self, path: Path) -> bool:
        """Return True if others may read or write a path, or a part of it, through the collection.

        A mapped collection shares nothing: it shows each user what their own account may read.
        """
        if self.mapped:
            return False
        path, folder = Path(normpath(path)), Path(normpath(self.folder))
        return path.is_relative_to(folder) or folder.is_relative_to(path)


@dataclass(frozen=True)
class Exchange:
    """The two folders of a site that others reach; everything else of a site is private.

    Attributes:
        incoming: the driver writes models there.
        outgoing: the site writes its updates and their manifests there.
    """

    incoming: Path
    outgoing: Path


IN, OUT = "in", "out"  # names of the two folders


@dataclass(frozen=True)
class Ranks:
    """Ranks of training in a block.

    Attributes:
        per_node: ranks per node.
        launch: command that starts ``{nodes}`` x ``{ranks_per_node}`` = ``{ranks}`` ranks of the program that follows
            it, as a list of arguments; these names are replaced by numbers. Empty: torch's own launcher, for one node.
        backend: backend of torch.distributed.
        interface: network interface between the ranks; empty: any.
    """

    per_node: int = 1
    launch: tuple[str, ...] = ()
    backend: Backend = "gloo"
    interface: str = ""


@dataclass(frozen=True)
class Site:
    """One site of a campaign.

    Attributes:
        name: name of the site in the campaign.
        machine: description of the machine, for people.
        login_host: the machine on whose login nodes jobs are submitted, if it is one of the known ones: jobs of two of
            them cannot be submitted from one host. Empty: not known.
        route: how work reaches the site.
        storage_root: folder of what is private to the site in this campaign: shard, optimiser state, checkpoints,
            manifests, leases, logs.
        exchange: folders of what is sent to the site and of what leaves it; None: ``in`` and ``out`` below
            ``storage_root``, where the driver sees the site's storage anyway.
        provider: makes the Parsl provider that starts its blocks; called when the campaign starts, not before.
        device: torch device of a worker: cpu, cuda (also ROCm) or xpu.
        threads: torch threads of a worker.
        address: address of the driver for the workers; empty: that of ``driver_interface`` on this host.
        driver_interface: network interface of the driver's host that compute nodes can reach.
        heartbeat_s: after twice this time without a message a block counts as lost.
        environment: variables set for the workers before Python starts.
        setup: shell lines before the workers start: modules, activation of the site's own environment.
        python_env: folder of the environment whose ``bin`` is first in PATH at the site; None: that of the driver,
            which the site must then be able to read.
        block: batch job, for the route ``batch``.
        node: hardware of a node, if known; the memory plan is made for it.
        ranks: ranks of training in a block.
        collection: Globus collection that shows the folders of ``exchange``, and not ``storage_root``.
        carrier: how artifacts reach the site: ``copy`` and ``shared`` if this machine can read its storage (``shared``
            links files instead of copying them), ``globus`` by Globus Transfer.
        endpoint: Globus Compute endpoints, for the route ``globus``.
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
    login_host: str = ""
    exchange: Exchange | None = None

    @property
    def incoming(self) -> Path:
        """Folder to which models are sent."""
        return self.exchange.incoming if self.exchange else self.storage_root / IN

    @property
    def outgoing(self) -> Path:
        """Folder from which updates and manifests are fetched."""
        return self.exchange.outgoing if self.exchange else self.storage_root / OUT

    @property
    def shared_folder(self) -> Path | None:
        """Folder that others reach through a guest collection; None: there is none."""
        if self.carrier != "globus" or self.collection is None or self.collection.mapped:
            return None
        return self.collection.folder

    @property
    def own_block(self) -> Block | None:
        """Return the batch job if this driver submits it; an endpoint submits its own."""
        return self.block if self.route == "batch" else None

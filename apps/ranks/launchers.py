"""Start the ranks of a site, choose the device of each, and join them to a process group."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from apps.base.errors import UserMistake
from apps.base.own_packages import ROOT
from apps.ranks.parallel import Parallel, ranks_of
from apps.ranks.process_group import ProcessGroup
from apps.ranks.rank_info import RankInfo, without_ranks

logger = logging.getLogger(__name__)
PALS = Path("/opt/cray/pals")  # HPE's launcher, at ALCF and elsewhere
COLLECTIVE_TIMEOUT = timedelta(hours=1)  # long: a rank that has died is noticed by the control line at once


class Rendezvous(NamedTuple):
    """Where ranks meet: the host and port of torch's store, and the prefix of their keys in it."""

    host: str
    port: int
    secret: str


def open_store(address: str) -> Any:
    """Return torch's store for ranks, which listens at one address of this host and at no other.

    It takes the requests of whoever reaches that address. No port has to be guessed: the system chooses it.

    Args:
        address: IPv4 address that all ranks can reach.
    """
    from torch.distributed import TCPStore

    with socket.create_server((address, 0), backlog=4096) as server:
        port = server.getsockname()[1]
        return TCPStore(
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach(), use_libuv=True
        )


def launch_command(parallel: Parallel, program: Sequence[str]) -> list[str]:
    """Return the command that starts the ranks of a program, as a list of arguments."""
    ranks = ranks_of(parallel)
    if not parallel["launch"]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        return [*torchrun, f"--nproc-per-node={ranks}", *program]
    values = {"nodes": parallel["nodes"], "ranks_per_node": parallel["ranks_per_node"], "ranks": ranks}
    arguments = [system_launcher(parallel["launch"][0]), *parallel["launch"][1:]]
    for name, value in values.items():
        arguments = [argument.replace(f"{{{name}}}", str(value)) for argument in arguments]
    return [*arguments, *program]


def system_launcher(program: str, pals: Path = PALS) -> str:
    """Return the program to start for the first word of a launch command.

    A Python environment may hold an ``mpiexec`` of its own (conda's do) that starts ranks on this node only. Where the
    machine has PALS, ``mpiexec`` is the one of PALS: the first in PATH, else the newest.

    Args:
        program: first word of the launch command.
        pals: folder in which PALS is installed.
    """
    if program != "mpiexec" or not pals.is_dir():
        return program
    in_path = [Path(folder) / program for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    found = [path for path in in_path if path.resolve().is_relative_to(pals.resolve()) and os.access(path, os.X_OK)]
    newest = sorted(pals.glob(f"*/bin/{program}"), key=lambda path: _version(path.parts[-3]))
    return str([*found, *reversed(newest), program][0])


def _version(text: str) -> tuple[int, ...]:
    """Return a version as numbers; a name such as ``default`` comes after all of them."""
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else (sys.maxsize,)


def launch_environment(environment: Mapping[str, str], parallel: Parallel, threads: int) -> dict[str, str]:
    """Return the environment of the ranks: this project's code, their threads, and the network interface they use.

    The worker may itself be a rank of another launcher; its variables are left out, so that what a rank finds was set
    by its own launcher.
    """
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    interface = parallel["interface"] or ("lo" if parallel["nodes"] == 1 else "")
    network = {"GLOO_SOCKET_IFNAME": interface} if interface else {}
    if parallel["interface"]:
        network["NCCL_SOCKET_IFNAME"] = interface
    return {
        **network,  # the site's own settings take precedence
        **without_ranks(environment),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # "python -m" would look in the current folder first
        "OMP_NUM_THREADS": str(threads),
    }


def rendezvous_address(parallel: Parallel) -> str:
    """Return the IPv4 address of this host that all ranks can reach.

    Raises:
        UserMistake: this host has no such interface.
    """
    import psutil

    if not parallel["interface"] and parallel["nodes"] == 1:
        return "127.0.0.1"
    found = {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family.name == "AF_INET"
    }
    if parallel["interface"]:
        if parallel["interface"] not in found:
            raise UserMistake(
                f"this node has no network interface {parallel['interface']!r}, only {', '.join(sorted(found))}",
                remedy="Set ranks.interface of the site to one of these",
            )
        return found[parallel["interface"]]
    outside = [address for address in found.values() if not address.startswith("127.")]
    return outside[0] if outside else "127.0.0.1"


def unmask_devices(environment: dict[str, str] | os._Environ[str]) -> None:
    """Keep only one of two device masks on ROCm; must be called before the first use of a device.

    Parsl sets the variables of all vendors at once; HIP reads CUDA's as an index into the devices that ROCr has left
    visible, so that any device but the first would be hidden twice.
    """
    import torch

    if torch.version.hip and "ROCR_VISIBLE_DEVICES" in environment:
        environment.pop("CUDA_VISIBLE_DEVICES", None)


def make_cache_folders(environment: Mapping[str, str]) -> None:
    """Make the folders for MIOpen's caches on this node, where a site's set-up names some: MIOpen does not."""
    for name in ("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR"):
        if environment.get(name):
            with suppress(OSError):  # MIOpen then computes what it would have read
                Path(environment[name]).mkdir(parents=True, exist_ok=True)


def own_device(kind: str, local_rank: int) -> str:
    """Return the torch device of a rank; a launcher may show it all devices of a node, or its own alone.

    Args:
        kind: cpu, cuda or xpu.
        local_rank: number of the rank on its node.

    Raises:
        UserMistake: the node has no device of this kind.
    """
    import torch

    if kind == "cpu":
        return "cpu"
    count = torch.get_device_module(kind).device_count()
    if count == 0:
        raise UserMistake(
            f"this node has no {kind} device", remedy="Set the site's device to cpu, or correct its setup"
        )
    return f"{kind}:{local_rank % count}"


def initialise_mpi(kind: str, environment: Mapping[str, str]) -> None:
    """Initialise MPI where oneCCL exchanges its addresses over it, and leaves that to the program.

    ALCF's release notes of Aurora's ``frameworks/2026.1.0``: with ``CCL_KVS_MODE=mpi`` an import of mpi4py is needed.
    """
    if kind == "xpu" and environment.get("CCL_KVS_MODE") == "mpi":
        try:
            import_module("mpi4py.MPI")
        except (ImportError, RuntimeError) as error:  # it is not there, or finds no MPI
            logger.warning("MPI is not initialised for oneCCL: %s", error)


@contextmanager
def join_process_group(
    rank_info: RankInfo, parallel: Parallel, kind: str, rendezvous: Rendezvous
) -> Iterator[ProcessGroup]:
    """Join the process group of all ranks at the store that the worker holds.

    Args:
        rank_info: of this rank.
        parallel: layout of the ranks.
        kind: of device: cpu, cuda or xpu.
        rendezvous: the store.
    """
    import torch
    from torch import distributed

    device, ranks = own_device(kind, rank_info.local_rank), ranks_of(parallel)
    if kind != "cpu":
        torch.get_device_module(kind).set_device(device)
    initialise_mpi(kind, os.environ)
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{parallel['backend']}"
    host, port, secret = rendezvous
    shared = distributed.TCPStore(host, port, is_master=False, timeout=COLLECTIVE_TIMEOUT)
    store: Any = distributed.PrefixStore(secret, shared)
    rank = rank_info.rank
    distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT)
    yield ProcessGroup(device, rank, ranks)
    distributed.destroy_process_group()  # not after an error: it would wait for ranks that are gone

"""The ranks of a training: how they are started, who a process is among them, and which device is its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from apps.base.errors import TaskError, UserMistake
from apps.ranks.parallel import Parallel, ranks_of
from apps.ranks.process_group import ProcessGroup

COLLECTIVE_TIMEOUT = timedelta(hours=1)  # that a rank has with another; who is dead is noticed at once
PROJECT = Path(__file__).resolve().parents[2]
# rank, rank on its node, number of ranks; the most particular first: inside a Slurm job, Slurm's own are always set
VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE"),
    ("PMI_RANK", "PMI_LOCAL_RANK", "PMI_SIZE"),
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
)


@dataclass(frozen=True)
class RankInfo:
    """Which rank a process is, over all nodes and on its own."""

    rank: int
    local_rank: int


def find_rank(environment: Mapping[str, str], ranks: int) -> RankInfo:
    """Which of ``ranks`` ranks this process is, from what its launcher has set.

    Raises:
        TaskError: no launcher has started as many ranks.
    """
    for rank, local_rank, size in VARIABLES:
        values = [environment.get(name, "") for name in (rank, local_rank, size)]
        if all(value.isdecimal() for value in values) and int(values[2]) == ranks:
            return RankInfo(int(values[0]), int(values[1]))
    names = [name for triple in VARIABLES for name in triple]
    found = ", ".join(f"{name}={environment[name]}" for name in dict.fromkeys(names) if name in environment)
    raise TaskError(
        f"this process is none of {ranks} ranks: {found or 'no launcher has set any variable'}",
        remedy="Check the site's launch command",
    )


def launch_command(parallel: Parallel, program: Sequence[str]) -> list[str]:
    """The command that starts the ranks of a program, word for word."""
    ranks = ranks_of(parallel)
    if not parallel["launch"]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        return [*torchrun, f"--nproc-per-node={ranks}", *program]
    places = {"nodes": parallel["nodes"], "ranks_per_node": parallel["ranks_per_node"], "ranks": ranks}
    words = list(parallel["launch"])
    for name, value in places.items():
        words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    return [*words, *program]


def launch_environment(environment: Mapping[str, str], parallel: Parallel, threads: int) -> dict[str, str]:
    """Variables of the ranks: this project's code, their threads, and the network interface they meet on."""
    paths = [str(PROJECT), *filter(None, [environment.get("PYTHONPATH")])]
    interface = parallel["interface"] or ("lo" if parallel["nodes"] == 1 else "")
    meeting = {"GLOO_SOCKET_IFNAME": interface} if interface else {}
    if parallel["interface"]:
        meeting["NCCL_SOCKET_IFNAME"] = interface
    return {
        **meeting,  # what the site has set goes before
        **environment,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # "python -m" would look in the current folder first
        "OMP_NUM_THREADS": str(threads),
    }


def meeting_address(parallel: Parallel) -> str:
    """The IPv4 address of this host that all ranks reach.

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
                remedy="Name another one in the site's ranks.interface",
            )
        return found[parallel["interface"]]
    outside = [address for address in found.values() if not address.startswith("127.")]
    return outside[0] if outside else "127.0.0.1"


def unmask_devices(environment: dict[str, str] | os._Environ[str]) -> None:
    """Leave one mask of devices on ROCm, before the first use of a device.

    Parsl sets the variables of all makers at once; HIP reads CUDA's as an index into what ROCr has left visible, so
    that any device but the first would be hidden twice.
    """
    import torch

    if torch.version.hip and "ROCR_VISIBLE_DEVICES" in environment:
        environment.pop("CUDA_VISIBLE_DEVICES", None)


def own_device(kind: str, local_rank: int) -> str:
    """The torch device of a rank; a launcher may show it all of a node's, or its own alone.

    Raises:
        UserMistake: there is none.
    """
    import torch

    if kind == "cpu":
        return "cpu"
    count = torch.get_device_module(kind).device_count()
    if count == 0:
        raise UserMistake(f"this node has no {kind} device", remedy="Set the site's device to cpu, or mend its set-up")
    return f"{kind}:{local_rank % count}"


@contextmanager
def join_process_group(
    seat: RankInfo, parallel: Parallel, kind: str, meeting: tuple[str, int]
) -> Iterator[ProcessGroup]:
    """The ranks, once all have met at the store that the worker keeps.

    Args:
        seat: this rank's.
        kind: of device: cpu, cuda or xpu.
        meeting: address and port of the store.
    """
    import torch
    from torch import distributed

    device, ranks = own_device(kind, seat.local_rank), ranks_of(parallel)
    if kind != "cpu":
        torch.get_device_module(kind).set_device(device)
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{parallel['backend']}"
    store: Any = distributed.TCPStore(*meeting, is_master=False, timeout=COLLECTIVE_TIMEOUT)
    distributed.init_process_group(backend, store=store, rank=seat.rank, world_size=ranks, timeout=COLLECTIVE_TIMEOUT)
    yield ProcessGroup(device, seat.rank, ranks)
    distributed.destroy_process_group()  # not after an error: it would wait for ranks that are gone

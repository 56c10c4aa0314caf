"""Memory that a process may have on this machine: its own, the limits of its control groups, and of the shell."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A number of bytes, and what sets it."""

    nbytes: int
    source: str


def memory_limit(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> MemoryLimit:
    """Return the smallest limit of the memory of this user's processes on this machine.

    Args:
        cgroups: where control groups are mounted.
        own: the list of the groups of this process.
    """
    import psutil

    limits = [MemoryLimit(psutil.virtual_memory().total, "all of its memory"), *_shell_limits(), *_groups(cgroups, own)]
    return min(limits, key=lambda limit: limit.nbytes)


def _shell_limits() -> Iterator[MemoryLimit]:
    for name, number in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA)):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            yield MemoryLimit(soft, name)


def _groups(cgroups: Path, own: Path) -> Iterator[MemoryLimit]:
    """Yield the limits of the groups of this process and of those above them: version 2, and version 1's memory."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            top = cgroups / "memory" if controllers else cgroups
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            group = top / path.lstrip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
                yield from _limit_in(folder / name)


def _limit_in(path: Path) -> Iterator[MemoryLimit]:
    try:
        text = path.read_text().strip()
    except OSError:
        return
    if text.isdigit():  # else "max"
        yield MemoryLimit(int(text), f"the limit in {path}")

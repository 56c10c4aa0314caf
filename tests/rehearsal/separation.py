"""What this machine can separate, what is missing on it, and the memory cap of the driver's host."""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rehearsal.commands import SEARCH_PATH, namespaces, program, works

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "rabbitmq-server": "rabbitmq-server",
    "epmd": "rabbitmq-server",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
}
TRIAL = "mount -t proc proc /proc && ip link add rh0 type veth peer name rh1 && ip link add rh2 type bridge"
CGROUPS = (("memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"), ("", "memory.max", "memory.peak"))


def missing_programs(with_globus: bool) -> list[str]:
    """Return a line for each program that is not installed, with the command that installs it."""
    needed = [name for name in PACKAGES if with_globus or PACKAGES[name] != "rabbitmq-server"]
    missing = [name for name in needed if not installed(name)]
    return [f"{name}: apt-get install {PACKAGES[name]} (or .ci/packages.sh as root)" for name in missing]


def installed(name: str) -> bool:
    if name == "rabbitmq-server":
        from facilities.globus.rabbit import server_program

        return server_program() is not None
    return shutil.which(name, path=SEARCH_PATH) is not None


def needs_user_namespace() -> bool | None:
    """Return whether places need a user namespace on this machine; None: it cannot make places at all."""
    kinds = ("mount", "net", "uts", "ipc", "pid")
    for user in (False, True):
        if works(*namespaces(user, *kinds), "bash", "-c", TRIAL):
            return user
    return None


@dataclass(frozen=True)
class MemoryCap:
    """A limit of the memory of the driver and of all that it starts.

    Attributes:
        nbytes: the limit; 0: none.
        group: the control group; None: a limit of each process instead.
        peak: file of the group with the most that was used.
    """

    nbytes: int
    group: Path | None = None
    peak: str = ""

    def command(self, words: list[str]) -> list[str]:
        """Return a command under the limit."""
        if not self.nbytes:
            return words
        if self.group is None:
            return [program("prlimit"), f"--data={self.nbytes}", "--", *words]
        joined = f'echo $$ > {self.group / "cgroup.procs"} && exec "$@"'
        return ["bash", "-c", joined, "bash", *words]

    def used_bytes(self) -> int | None:
        """Return the most memory that was used; None where that is not known."""
        with suppress(OSError, ValueError):
            return int((self.group / self.peak).read_text()) if self.group else None
        return None

    def describe(self) -> str:
        kind = "of all its processes" if self.group else "of each process (no control group can be made here)"
        return f"{self.nbytes / 1e9:.1f} GB {kind}"

    def remove(self) -> None:
        if self.group:
            with suppress(OSError):
                self.group.rmdir()


NO_CAP = MemoryCap(0)


def memory_cap(nbytes: int) -> MemoryCap:
    """Return a limit by a control group of version 1 or 2, else by a limit of each process."""
    for controller, limit, peak in CGROUPS:
        group = _own_group(controller) / f"crossfed-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(nbytes))
            return MemoryCap(nbytes, group, peak)
        except OSError:
            with suppress(OSError):
                group.rmdir()
    return MemoryCap(nbytes)


def _own_group(controller: str) -> Path:
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return root / controller / path.lstrip("/")
    return root / "nothing"

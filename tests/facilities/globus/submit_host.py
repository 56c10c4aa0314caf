"""The host at a facility from which an endpoint agent submits its jobs: the cluster's own commands, as the right user.

Root's agents see themselves as nobody, and so would their jobs, who may read nothing. Each command is therefore given a
user namespace of its own in which it is root again; munge and the cluster, which are outside, see root throughout.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from facilities.daemons import SEARCH_PATH, program
from facilities.globus.agents import as_nobody, endpoint_environment
from facilities.globus.reaper import VARIABLE
from facilities.slurm import SlurmCluster

COMMANDS = ("sbatch", "scancel", "sacct", "squeue")  # those that Parsl's provider uses


def submit_host(root: Path, cluster: SlurmCluster) -> dict[str, str]:
    """What an agent's children need in their environment to reach a cluster, as ``user_environment.yaml`` gives it.

    Args:
        root: a folder for the commands.
        cluster: running.
    """
    folder = root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(wrapper(name))
        path.chmod(0o755)
    return {
        **cluster.environment,
        "PATH": os.pathsep.join([str(folder), str(endpoint_environment() / "bin"), SEARCH_PATH]),
    }


def wrapper(name: str) -> str:
    """The text of a command: jobs inherit its environment, and belong to the cluster and not to the agent."""
    as_root = [program("unshare"), "--user", "--map-root-user", "--"] if as_nobody() else []
    command = [program("env"), f"--unset={VARIABLE}", *as_root, program(name)]
    return f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'

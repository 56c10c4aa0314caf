"""The host at a facility from which an endpoint agent submits its jobs: the cluster's own commands, as the right user.

Agents of root run as nobody, and so would their jobs, which could read nothing. Each command therefore gets its own
user namespace in which it is root again; munge and the cluster, which are outside, always see root.
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
    """Return the variables that an agent's children need to reach a cluster, as ``user_environment.yaml`` sets them.

    Args:
        root: folder for the commands.
        cluster: running cluster.
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
    """Return the text of a command: jobs inherit its environment, and belong to the cluster and not to the agent."""
    as_root = [program("unshare"), "--user", "--map-root-user", "--"] if as_nobody() else []
    command = [program("env"), f"--unset={VARIABLE}", *as_root, program(name)]
    return f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'

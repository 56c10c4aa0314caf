"""``mpiexec`` of Cray PALS as it is at ALCF, over the srun of the facility: the ranks get its variables and no others.

``pals.py KIND POLICY_FILE ARGUMENTS...`` is the launcher, ``pals.py --rank KIND ... PROGRAM...`` a rank.

The tables of variables and their sources are those of ``launcher_variables``; a test compares. This file is run by
nodes and imports nothing of the project.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

WITH_VALUE = (
    "-n",
    "-np",
    "--np",
    "-ppn",
    "--ppn",
    "--cpu-bind",
    "--gpu-bind",
    "-d",
    "--depth",
    "--hosts",
    "--hostfile",
)
FOREIGN = ("SLURM", "SRUN", "PMI", "PALS", "MPI", "OMPI", "LAUNCH_NODE")  # what the launcher below has set


def variables(kind: str, rank: int, local_rank: int, node: int, ranks: int, per_node: int, app: str) -> dict[str, str]:
    """Return the variables of one rank at ``aurora`` or ``polaris``."""
    found: dict[str, object] = {"PALS_RANKID": rank, "PALS_LOCAL_RANKID": local_rank, "PALS_NODEID": node}
    found |= {"PALS_LOCAL_SIZE": per_node, "PALS_DEPTH": 1, "PALS_APID": app}
    if kind == "aurora":
        found |= {"PALS_PMI": "pmix", "PMIX_RANK": rank, "PMIX_NAMESPACE": app}
    else:
        found |= {"PMI_RANK": rank, "PMI_LOCAL_RANK": local_rank, "PMI_SIZE": ranks, "PMI_LOCAL_SIZE": per_node}
        found |= {"PMI_UNIVERSE_SIZE": ranks, "PMI_JOBID": app, "PMI_CONTROL_PORT": 28000 + node}
    return {name: str(value) for name, value in found.items()}


def launch(kind: str, conf: str, arguments: list[str]) -> None:
    """Become the launcher of the ranks on the nodes of this job."""
    options, program = split(arguments)
    hosts = list(dict.fromkeys(Path(os.environ["PBS_NODEFILE"]).read_text().split()))
    ranks = int(options.get("n", len(hosts)))
    per_node = int(options.get("ppn", ranks))
    nodes = hosts[: -(-ranks // per_node)]
    job = os.environ["PBS_JOBID"].split(".")[0]
    command = ["srun", "--overlap", "--overcommit", "--export=ALL", "--mpi=none", f"--jobid={job}"]
    command += [f"--nodes={len(nodes)}", f"--nodelist={','.join(nodes)}", f"--ntasks={ranks}"]
    command += [f"--ntasks-per-node={per_node}", sys.executable, "-SE", __file__]
    command += ["--rank", kind, str(uuid.uuid4()), str(ranks), str(per_node)]
    environment = {**os.environ, **json.loads(Path(conf).read_text())["slurm"]}
    os.execvpe("srun", [*command, *program], environment)


def split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the launcher's options and the program; an option that it does not have is refused."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        word, given, value = rest.pop(0).partition("=")
        if word not in WITH_VALUE:
            sys.exit(f"mpiexec: unrecognized option '{word}'")
        key = word.lstrip("-")
        options["n" if key == "np" else key] = value if given else rest.pop(0)
    return options, rest


def be_rank(kind: str, app: str, ranks: str, per_node: str, program: list[str]) -> None:
    """Become a rank of the program."""
    own = os.environ
    numbers = [int(own[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")]
    kept = cleaned(own)
    os.execvpe(program[0], program, {**kept, **variables(kind, *numbers, int(ranks), int(per_node), app)})


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        be_rank(*sys.argv[2:6], sys.argv[6:])  # type: ignore[arg-type]
    else:
        launch(sys.argv[1], sys.argv[2], sys.argv[3:])

"""A minimal launcher: it starts ranks with the variables of a real one and does not end the others if one fails.

``python toy_mpiexec.py KIND RANKS PER_NODE SLOW_S PROGRAM...``: KIND is a name of ``launcher_variables.LAUNCHERS``;
every step of a rank's training takes SLOW_S seconds longer.
"""

from __future__ import annotations

import os
import subprocess
import sys

from launcher_variables import environment_of
from training_site import slow_down


def launch(kind: str, ranks: int, per_node: int, slow_s: str, program: list[str]) -> int:
    """Start the ranks and wait for all; return the first exit code that is not 0."""
    started = []
    for rank in range(ranks):
        variables = environment_of(kind, rank, ranks, per_node, dict(os.environ))
        command = [sys.executable, __file__, "--rank", slow_s, *program]
        started.append(subprocess.Popen(command, env=variables))
    return next(filter(None, [process.wait() for process in started]), 0)


def be_rank(slow_s: str, *program: str) -> None:
    """Run this process as a rank of the program; another launcher may have started it."""
    from apps import rank

    slow_down(float(slow_s))
    sys.argv[1:] = program[-1:]
    rank.main()


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        be_rank(*sys.argv[2:])
    else:
        sys.exit(launch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]))

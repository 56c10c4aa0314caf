"""A minimal launcher: it starts ranks with PMI's variables and does not end the others if one fails.

``python toy_mpiexec.py RANKS SLOW_S PROGRAM...``: every step of a rank's training takes SLOW_S seconds longer.
"""

from __future__ import annotations

import os
import subprocess
import sys

from training_site import slow_down


def launch(ranks: int, slow_s: str, program: list[str]) -> int:
    """Start the ranks and wait for all; return the first exit code that is not 0."""
    started = []
    for rank in range(ranks):
        variables = {"PMI_RANK": str(rank), "PMI_LOCAL_RANK": str(rank), "PMI_SIZE": str(ranks)}
        command = [sys.executable, __file__, "--rank", slow_s, *program]
        started.append(subprocess.Popen(command, env={**os.environ, **variables}))
    return next(filter(None, [process.wait() for process in started]), 0)


def be_rank(slow_s: str, *program: str) -> None:
    """Run this process as a rank of the program; another launcher may have started it."""
    from apps.training import trainer

    slow_down(float(slow_s))
    sys.argv[1:] = program[-1:]
    trainer.main()


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        be_rank(*sys.argv[2:])
    else:
        sys.exit(launch(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

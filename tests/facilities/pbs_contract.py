"""A fixed list of PBS calls and the answers of the PBS on PATH, with ids and times replaced.

Run in an empty folder on a machine with a real OpenPBS, it prints the content of ``openpbs_answers.txt``. The queues
must be those of ``test_pbs_contract.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMON = ["-A", "fusion", "-l", "filesystems=home"]
DEBUG = ["qsub", *COMMON, "-q", "debug", "-l", "select=1:ncpus=1"]
PROD = ["qsub", *COMMON, "-q", "prod"]

TWO_NODES = """\
#!/bin/bash
#PBS -N named
#PBS -l select=2:ncpus=2:system=polaris
#PBS -l walltime=00:05:00
#PBS -l filesystems=home:eagle
#PBS -l place=scatter
exit 3
"""

WORLD = """\
#PBS -l select=2:ncpus=1
#PBS -l place=scatter
[ "$PWD" = "$HOME" ] && echo "starts in HOME"
[ -z "${OF_THE_SUBMITTER:-}" ] && echo "no environment of the submitter"
[ -n "${ASKED:-}" ] && echo "but what -v names: $ASKED"
[ "$(sort -u "$PBS_NODEFILE" | wc -l)" = 2 ] && echo "two hosts in PBS_NODEFILE"
[ -n "$PBS_JOBID" ] && [ "$PBS_O_WORKDIR" != "$PWD" ] && [ "$PBS_ENVIRONMENT" = PBS_BATCH ] &&
  echo "$PBS_QUEUE $PBS_O_QUEUE $PBS_JOBNAME"
"""

REFUSED = (
    ["qsub", *COMMON, "-q", "nosuch", "two.sh"],
    ["qsub", *COMMON, "-q", "debug", "-l", "walltime=02:00:00", "two.sh"],
    ["qsub", *COMMON, "-q", "debug", "-l", "select=3:ncpus=1", "two.sh"],
    [*PROD, "-l", "select=1:ncpus=1", "--", "/bin/true"],
    ["qsub", *COMMON, "-q", "debug", "-l", "nosuchres=1", "--", "/bin/true"],
    ["qsub", *COMMON, "-q", "debug", "-l", "select=1:nosuch=1", "--", "/bin/true"],
    ["qsub", "nosuchfile"],
)
SHOWN_RESOURCES = ("filesystems", "ncpus", "nodect", "select", "walltime")


@dataclass(frozen=True)
class Machine:
    """The PBS commands of an environment, called in one folder."""

    folder: Path
    environment: Mapping[str, str]

    def call(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def transcript(self, *command: str) -> list[str]:
        """Run a command; return the lines of a terminal, with the exit code."""
        done = self.call(*command)
        return [normalized(f"$ {' '.join(command)}"), *normalized(done.stdout).splitlines(), f"[rc {done.returncode}]"]

    def query(self, *ids: str) -> dict[str, Any]:
        command = ["qstat", "-x", "-f", "-F", "json", *ids]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout))

    def submit(self, *command: str, **variables: str) -> str:
        return self.call(*command, **variables).stdout.strip()

    def state(self, job_id: str) -> str:
        """Return the state of one job in one line."""
        (job,) = self.query(job_id)["Jobs"].values()
        substate = {41: 42}.get(job.get("substate"), job.get("substate"))  # about to run
        head = f"{job['job_state']} substate {substate} exit {job.get('Exit_status')} queue {job['queue']}"
        resources = [f"{k}={job['Resource_List'][k]}" for k in SHOWN_RESOURCES if k in job["Resource_List"]]
        return " ".join([head, f"account {job.get('Account_Name')}", *resources])

    def wait(self, job_id: str, letter: str) -> str:
        """Wait up to a minute until a job is in a state; return the state in one line."""
        for _ in range(600):
            if self.state(job_id).startswith(letter):
                return self.state(job_id)
            time.sleep(0.1)
        return f"never {letter}"


def normalized(text: str) -> str:
    return re.sub(r"queue (generic|debug)", "queue Q", re.sub(r"\b[0-9]+\.[a-zA-Z][-a-zA-Z0-9.]*", "ID", text))


def answers(machine: Machine) -> Iterator[str]:
    """Yield all answers, line by line; takes half a minute."""
    (machine.folder / "two.sh").write_text(TWO_NODES)
    (machine.folder / "world.sh").write_text(WORLD)
    parts: tuple[Callable[[Machine], Iterator[str]], ...] = (refusals, unknown, fails, over_walltime)
    for part in (*parts, user_limits, held, world):
        yield from part(machine)


def refusals(machine: Machine) -> Iterator[str]:
    yield "## refused"
    for command in REFUSED:
        yield from machine.transcript(*command)


def unknown(machine: Machine) -> Iterator[str]:
    yield "## unknown"
    yield from machine.transcript("qstat", "99999")
    yield from machine.transcript("qdel", "99999")
    yield f"keys {sorted(machine.query('99999'))}"


def fails(machine: Machine) -> Iterator[str]:
    yield "## runs and fails with 3"
    job_id = machine.submit("qsub", "-A", "fusion", "-q", "debug", "two.sh")
    yield machine.wait(job_id, "F")
    yield from machine.transcript("qstat", job_id)
    yield from machine.transcript("qdel", job_id)


def over_walltime(machine: Machine) -> Iterator[str]:
    yield "## walltime of ten seconds"
    job_id = machine.submit(*DEBUG, "-l", "walltime=00:00:10", "--", "/bin/sleep", "100")
    yield machine.wait(job_id, "R")
    yield machine.wait(job_id, "F")


def user_limits(machine: Machine) -> Iterator[str]:
    yield "## one runs, one waits, a third is refused; the waiting one is deleted"
    running = machine.submit(*DEBUG, "--", "/bin/sleep", "100")
    machine.wait(running, "R")
    waiting = machine.submit(*DEBUG, "--", "/bin/sleep", "100")
    time.sleep(3)  # long enough to be started if there were no limit
    yield machine.state(waiting)
    yield from machine.transcript(*DEBUG, "--", "/bin/true")
    yield from machine.transcript("qdel", waiting)
    yield machine.wait(waiting, "F")
    yield from machine.transcript("qdel", running)
    yield re.sub(r"exit [0-9]+", "exit of a killed job", machine.wait(running, "F"))


def held(machine: Machine) -> Iterator[str]:
    yield "## held"
    job_id = machine.submit("qsub", *COMMON, "-h", "-q", "prod", "-l", "select=2:ncpus=1", "--", "/bin/true")
    yield machine.wait(job_id, "H")
    yield from machine.transcript("qdel", job_id)
    other = machine.submit("qsub", *COMMON, "-h", "-q", "prod", "-l", "select=2:ncpus=1", "--", "/bin/true")
    yield "## two ids in one call"
    yield str(len(machine.query(job_id, other)["Jobs"]))
    machine.call("qdel", other)


def world(machine: Machine) -> Iterator[str]:
    yield "## the job's world"
    files = ["-o", str(machine.folder / "world.out"), "-e", str(machine.folder / "world.err")]
    command = [*PROD, "-N", "world", "-v", "ASKED=yes", *files, "world.sh"]
    machine.wait(machine.submit(*command, OF_THE_SUBMITTER="1"), "F")
    time.sleep(1)  # OpenPBS copies the output after the end
    yield from (machine.folder / "world.out").read_text().splitlines()


if __name__ == "__main__":
    for line in answers(Machine(Path.cwd(), {})):
        sys.stdout.write(line + "\n")

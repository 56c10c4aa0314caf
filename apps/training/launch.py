"""The worker's part of a training that runs as ranks: start them, wait for them, and return their result."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from apps.artifacts.manifests import Manifest
from apps.base.errors import CrossfedError, RanksLost, TaskError, UserMistake
from apps.base.files import inside, write_json
from apps.base.stop import StopRequest
from apps.ranks.control_line import WorkerEnd
from apps.ranks.launchers import launch_command, launch_environment, rendezvous_address
from apps.ranks.parallel import ranks_of
from apps.training.task import Task, found_manifest

logger = logging.getLogger(__name__)
TICK_S = 0.1
START_S = 900.0  # for all ranks to start: Python starts slowly when many nodes read the same files
SETTLE_S = 1.0  # after the first error: the rank that failed first may not be the first to report
GRACE_S = 5.0


def train_as_ranks(task: Task, stop: StopRequest) -> Manifest:
    """Start the ranks of a task with the site's launcher and wait for them.

    Args:
        task: to be trained.
        stop: a request to stop, which is passed on to the ranks.

    Raises:
        CrossfedError: the error of the rank that failed first.
        RanksLost: a rank ended without reporting a result, or did not start.
        UserMistake: the launcher or the network interface does not exist.
    """
    from torch.distributed import TCPStore

    parallel = task.work["parallel"]
    logs = inside(task.root, "logs", f"round-{task.place['round']:04d}")
    address = rendezvous_address(parallel)
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False)  # here, so that no port has to be guessed
    line = WorkerEnd(address)
    job = logs / f"{task.id}.json"
    write_json(
        job,
        {
            "task": asdict(task),
            "ranks": ranks_of(parallel),
            "logs": str(logs),
            "control_line": line.address,
            "rendezvous": [address, store.port],
        },
    )
    process = _start(task, job, logs / "launcher.log")
    try:
        _wait_for_ranks(process, line, stop, ranks_of(parallel))
    finally:
        line.close()
        _terminate(process)
    manifest = found_manifest(task)
    if manifest and not line.errors:
        return manifest
    raise _failure(line, process, ranks_of(parallel), logs)


def _start(task: Task, job: Path, log: Path) -> subprocess.Popen:
    parallel = task.work["parallel"]
    command = launch_command(parallel, [sys.executable, "-m", "apps.training.trainer", str(job)])
    environment = launch_environment(os.environ, parallel, task.work["threads"])
    with open(log, "ab") as output:
        try:  # in a session of its own: a signal to the worker's process group is passed on by the worker alone
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise UserMistake(f"cannot start {command[0]!r}: {error.strerror}", remedy="Check ranks.launch") from None


def _wait_for_ranks(process: subprocess.Popen, line: WorkerEnd, stop: StopRequest, ranks: int) -> None:
    """Wait until the ranks have ended or one of them has failed."""
    begun, passed_on = time.monotonic(), False
    while process.poll() is None:
        line.receive(TICK_S)
        if stop.requested and not passed_on and len(line.peers) == ranks:
            line.request_stop()
            passed_on = True
        if len(line.peers) < ranks and time.monotonic() - begun > START_S:
            return
        if line.errors or line.lost:
            break
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and not line.all_ended(ranks):
        line.receive(TICK_S)


def _terminate(process: subprocess.Popen) -> None:
    """Wait for the launcher, whose ranks end with the control line; then terminate it."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


def _failure(line: WorkerEnd, process: subprocess.Popen, ranks: int, logs: Path) -> CrossfedError:
    """Return the first cause: an expected error of a rank, else a lost rank, else an error that followed from it."""
    expected = [error for error in line.errors if not isinstance(error, TaskError)]
    if expected:
        return expected[0]
    if line.lost:
        lost = ", ".join(f"rank {peer.rank} ({peer.where})" for peer in line.lost)
        return RanksLost(
            f"{lost} of {ranks} ended without reporting a result: killed, or out of memory?", file=str(logs)
        )
    if line.errors:
        return line.errors[0]
    what = f"{len(line.peers)} of {ranks} ranks started, then the launcher ended with code {process.returncode}"
    return RanksLost(f"{what}: {_last_output_line(logs / 'launcher.log')}", file=str(logs / "launcher.log"))


def _last_output_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")

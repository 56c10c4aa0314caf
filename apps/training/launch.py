"""The worker's part of a training that runs as ranks: start them, look after them, and come back with what they say."""

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
from apps.ranks.launchers import launch_command, launch_environment, meeting_address
from apps.ranks.parallel import ranks_of
from apps.training.task import Task, found_answer

logger = logging.getLogger(__name__)
TICK_S = 0.1
START_S = 900.0  # for all ranks to come up: Python starts slowly when many nodes read the same files
HEAR_OUT_S = 1.0  # after the first bad news: who died first may not be heard of first
GRACE_S = 5.0


def train_as_ranks(task: Task, stop: StopRequest) -> Manifest:
    """Start the ranks of a task with the site's launcher and wait for them.

    Args:
        stop: passed on to the ranks once it is asked.

    Raises:
        CrossfedError: that of the rank that failed first.
        RanksLost: a rank has ended without a word, or did not come up.
        UserMistake: the launcher or the network interface is not there.
    """
    from torch.distributed import TCPStore

    parallel = task.work["parallel"]
    logs = inside(task.root, "logs", f"round-{task.place['round']:04d}")
    address = meeting_address(parallel)
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False)  # here, so that no port has to be guessed
    line = WorkerEnd(address)
    job = logs / f"{task.id}.json"
    write_json(
        job,
        {
            "task": asdict(task),
            "ranks": ranks_of(parallel),
            "logs": str(logs),
            "lifeline": line.address,
            "meeting": [address, store.port],
        },
    )
    process = _start(task, job, logs / "launcher.log")
    try:
        _look_after(process, line, stop, ranks_of(parallel))
    finally:
        line.cut()
        _end(process)
    manifest = found_answer(task)
    if manifest and not line.errors:
        return manifest
    raise _reason(line, process, ranks_of(parallel), logs)


def _start(task: Task, job: Path, log: Path) -> subprocess.Popen:
    parallel = task.work["parallel"]
    command = launch_command(parallel, [sys.executable, "-m", "apps.training.trainer", str(job)])
    environment = launch_environment(os.environ, parallel, task.work["threads"])
    with open(log, "ab") as words:
        try:  # in a session of its own: what is sent to the worker's group is for the worker to pass on
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
            )
        except OSError as error:
            raise UserMistake(f"cannot start {command[0]!r}: {error.strerror}", remedy="Check ranks.launch") from None


def _look_after(process: subprocess.Popen, line: WorkerEnd, stop: StopRequest, ranks: int) -> None:
    """Until the ranks have ended, or one of them is in trouble."""
    begun, asked = time.monotonic(), False
    while process.poll() is None:
        line.listen(TICK_S)
        if stop.asked and not asked and len(line.peers) == ranks:
            line.ask_to_stop()
            asked = True
        if len(line.peers) < ranks and time.monotonic() - begun > START_S:
            return
        if line.errors or line.lost:
            break
    end = time.monotonic() + HEAR_OUT_S
    while time.monotonic() < end and not line.heard_all(ranks):
        line.listen(TICK_S)


def _end(process: subprocess.Popen) -> None:
    """The ranks have lost their lifeline and end by themselves; the launcher follows or is ended."""
    for word in (None, signal.SIGTERM, signal.SIGKILL):
        if word is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, word)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


def _reason(line: WorkerEnd, process: subprocess.Popen, ranks: int, logs: Path) -> CrossfedError:
    """What went wrong first: a rank's own word, else who fell silent, else what the others met because of it."""
    foreseen = [error for error in line.errors if not isinstance(error, TaskError)]
    if foreseen:
        return foreseen[0]
    if line.lost:
        who = ", ".join(f"rank {peer.rank} ({peer.where})" for peer in line.lost)
        return RanksLost(f"{who} of {ranks} has ended without a word: killed, or out of memory?", file=str(logs))
    if line.errors:
        return line.errors[0]
    what = f"{len(line.peers)} of {ranks} ranks came up, then the launcher ended with code {process.returncode}"
    return RanksLost(f"{what}: {_last_words(logs / 'launcher.log')}", file=str(logs / "launcher.log"))


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

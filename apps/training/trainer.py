"""Run one rank of a training: ``python -m apps.training.trainer JOB.json``, started by the site's launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from apps.base.errors import CrossfedError, placed
from apps.base.stop import StopRequest
from apps.ranks.control_line import RankEnd
from apps.ranks.launchers import RankInfo, find_rank, join_process_group, unmask_devices
from apps.training.attempt import attempt_task
from apps.training.task import Task


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    seat = find_rank(os.environ, job["ranks"])
    _write_to(Path(job["logs"]) / f"rank-{seat.rank}.log")
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop)
    line = RankEnd(tuple(job["lifeline"]), seat.rank, stop)
    try:
        train_as(seat, job, stop)
    except CrossfedError as error:
        line.error(error)
        code = 1
    else:
        line.done()
        code = 0
    logging.shutdown()
    os._exit(code)  # all is said and on the disk; a library that tidies up may wait for a rank that is gone


def train_as(seat: RankInfo, job: dict[str, Any], stop: StopRequest) -> None:
    """One rank's part of a job; all that goes wrong comes out as a CrossfedError with its place."""
    task = Task(**job["task"])
    with placed(**task.place):
        unmask_devices(os.environ)
        kind = task.order["training"]["device"]
        with join_process_group(seat, task.work["parallel"], kind, tuple(job["meeting"])) as team:
            attempt_task(task, team, stop)


def _write_to(log: Path) -> None:
    """Send all words of this rank, those of libraries in C as well, to a file."""
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, sys.stdout.fileno())
    os.dup2(words, sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")


if __name__ == "__main__":
    main()

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
from apps.base.processes import redirect_output
from apps.base.stop import StopRequest
from apps.ranks.control_line import RankEnd
from apps.ranks.launchers import RankInfo, find_rank, join_process_group, unmask_devices
from apps.training.attempt import attempt_task
from apps.training.task import Task


def main() -> None:
    """Train as one rank and report the result to the worker."""
    job = json.loads(Path(sys.argv[1]).read_text())
    rank_info = find_rank(os.environ, job["ranks"])
    redirect_output(Path(job["logs"]) / f"rank-{rank_info.rank}.log")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop)
    line = RankEnd(tuple(job["control_line"]), rank_info.rank, stop)
    try:
        train_as_rank(rank_info, job, stop)
    except CrossfedError as error:
        line.send_error(error)
        code = 1
    else:
        line.send_done()
        code = 0
    logging.shutdown()
    os._exit(code)  # everything is reported and on the disk; a library's clean-up may wait for a rank that is gone


def train_as_rank(rank_info: RankInfo, job: dict[str, Any], stop: StopRequest) -> None:
    """Do one rank's part of a training.

    Args:
        rank_info: of this rank.
        job: as ``apps.training.launch`` writes it.
        stop: a request to stop.

    Raises:
        CrossfedError: any error, with its place.
    """
    task = Task(**job["task"])
    with placed(**task.place):
        unmask_devices(os.environ)
        kind = task.request["training"]["device"]
        with join_process_group(rank_info, task.work["parallel"], kind, tuple(job["rendezvous"])) as group:
            attempt_task(task, group, stop)


if __name__ == "__main__":
    main()

"""Run one rank of a site: ``python -m apps.rank START.json``, started by the site's launcher.

It joins the process group of all ranks, then does one job after the other until its worker ends it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.base.errors import CrossfedError, placed
from apps.base.processes import keep_files_private, redirect_output
from apps.base.stop import StopRequest
from apps.base.versions import require_same_code
from apps.evaluation.on_ranks import rank_losses
from apps.ranks.launchers import Rendezvous, join_process_group, make_cache_folders, unmask_devices
from apps.ranks.parallel import ranks_of
from apps.ranks.process_group import ProcessGroup
from apps.ranks.rank_end import RankEnd
from apps.ranks.rank_info import RankInfo, find_rank
from apps.training.attempt import attempt_task
from apps.training.task import Task

Job = Callable[[dict[str, Any], ProcessGroup, StopRequest], Any]


def train(work: dict[str, Any], group: ProcessGroup, stop: StopRequest) -> Any:
    """Do one rank's part of a training; return the manifest, at the rank that writes files."""
    return attempt_task(Task(**work["task"]), group, stop, work["verify_s"])


def evaluate(work: dict[str, Any], group: ProcessGroup, _stop: StopRequest) -> Any:
    """Do one rank's part of an evaluation; return the losses by task."""
    return rank_losses(**work, group=group)


JOBS: dict[str, Job] = {"train": train, "evaluate": evaluate}


def main() -> None:
    """Join the other ranks and do the jobs of the worker; a failed one ends this process."""
    keep_files_private()  # some launchers start ranks with another umask than that of their worker
    start = json.loads(Path(sys.argv[1]).read_text())
    parallel = start["parallel"]
    rank_info = find_rank(os.environ, ranks_of(parallel), parallel["ranks_per_node"])
    redirect_output(Path(start["logs"]) / f"rank-{rank_info.rank}.log")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop)
    line = RankEnd(tuple(start["control_line"]), rank_info.rank, start["secret"], stop)
    try:
        serve(rank_info, start, line)
    except CrossfedError as error:
        line.send_error(error)
    logging.shutdown()
    os._exit(1)  # everything is reported and on the disk; a library's clean-up may wait for a rank that is gone


def serve(rank_info: RankInfo, start: dict[str, Any], line: RankEnd) -> None:
    """Do one job after the other.

    Args:
        rank_info: of this rank.
        start: as ``apps.ranks.processes`` writes it.
        line: to the worker, which ends this process.

    Raises:
        CrossfedError: any error, with its place.
    """
    with placed(None):
        require_same_code(start["code_version"], None)
        unmask_devices(os.environ)
        make_cache_folders(os.environ)
        host, port = start["rendezvous"]
        rendezvous = Rendezvous(host, port, start["secret"])
        with join_process_group(rank_info, start["parallel"], start["device"], rendezvous) as group:
            while True:
                job, stop = line.next_job()
                redirect_output(Path(job["logs"]) / f"rank-{group.rank}.log")
                signal.signal(signal.SIGTERM, stop)
                with placed(**job["place"]):
                    require_same_code(start["code_version"], None)  # a job may have loaded more modules
                    result = JOBS[job["kind"]](job["work"], group, stop)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a rank that waits has nothing to save
                free_memory(group)
                line.send_done(result)


def free_memory(group: ProcessGroup) -> None:
    """Give back what the last job leaves but the model: its optimiser, gradients, and the device's cached blocks."""
    import torch

    gc.collect()
    if group.device != "cpu":
        torch.get_device_module(group.device).empty_cache()


if __name__ == "__main__":
    main()

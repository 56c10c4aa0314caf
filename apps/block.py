"""The first word of a block: it runs, and there is so much time in it."""

from __future__ import annotations

import os
import time
from typing import TypedDict

from apps.artifacts.manifests import Place
from apps.training.deadline import block_end

BLOCK_VARIABLE = "PARSL_WORKER_BLOCK_ID"


class Ready(TypedDict):
    """What a worker tells that has come to a task."""

    block: str  # Parsl's number of the block; empty where a worker has none
    left_s: float | None  # until its walltime is over, by the clock of the site; None where it has none
    host: str
    started: float
    ended: float


def ready(place: Place) -> Ready:
    """Answer as soon as a worker of the site is there to do it."""
    now, end = time.time(), block_end()
    left_s = None if end is None else end - now
    return Ready(
        block=os.environ.get(BLOCK_VARIABLE, ""), left_s=left_s, host=os.uname().nodename, started=now, ended=now
    )

"""The project's own Python at a site: reads calls as lines of JSON and writes the result of each as a line.

Started by the endpoint's worker (``workflows/globus/compute/bootstrap.py``), whose process id is the argument. It keeps
running between calls, so that model and data stay loaded, and it ends with the endpoint's worker: SIGTERM is sent to it
then, which a training treats as a request to save and stop.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import IO, Any

from apps.base.errors import VersionMismatch
from apps.base.processes import end_with_parent, keep_files_private
from apps.remote.calls import FUNCTIONS, answer_text
from apps.remote.orphaned_block import Activity, end_block_when_orphaned


def main() -> None:
    """Execute calls until the input ends."""
    if not end_with_parent(int(sys.argv[1])):
        sys.exit(1)
    keep_files_private()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answers = take_stdout()
    activity = Activity()
    end_block_when_orphaned(activity)
    send(answers, {"ready": {"pid": os.getpid(), "host": os.uname().nodename}})
    for line in sys.stdin:
        activity.set(at_work=True)
        result = answer_line(line)
        send(answers, result)
        activity.set(at_work=False)
        if result.get("error", {}).get("kind") == VersionMismatch.__name__:
            return  # this process has loaded the older code; the next one starts with the files as they are then


def take_stdout() -> IO[str]:
    """Return the stream for answers; whatever libraries print from now on goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def answer_line(line: str) -> dict[str, Any]:
    """Execute a call given as a line of JSON; the answer names the process that gave it."""
    worker = {"pid": os.getpid(), "host": os.uname().nodename}
    return {**json.loads(answer_text(line, FUNCTIONS)), "worker": worker}


def send(answers: IO[str], value: dict[str, Any]) -> None:
    """Write a value as one line of JSON."""
    try:
        answers.write(json.dumps(value) + "\n")
        answers.flush()
    except OSError:
        sys.exit(1)  # the endpoint's worker is gone

"""The project's own Python at a site: takes calls as lines of JSON and answers each with a line.

Started by the endpoint's worker (``workflows/globus/compute/bootstrap.py``), whose process id is the argument. It
stays between calls, so that model and data stay loaded, and ends with the worker: a signal says so, which a training
takes as the request to save and stop.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from typing import IO, Any

from apps.base.errors import REASON_LENGTH, TaskError, VersionMismatch
from apps.remote.calls import answer, error_record

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1  # Linux; elsewhere the end of the input is noticed after the call


def main() -> None:
    follow(int(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    answers = own_stdout()
    tell(answers, {"ready": {"pid": os.getpid(), "host": os.uname().nodename}})
    for line in sys.stdin:
        found = answer_line(line)
        tell(answers, found)
        if found.get("error", {}).get("kind") == VersionMismatch.__name__:
            return  # this process has loaded the older code; the next is started with what is there then


def follow(parent: int) -> None:
    """End with the worker, whatever ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended before the signal was set
            sys.exit(1)


def own_stdout() -> IO[str]:
    """The way of the answers; what libraries print from now on goes where errors go."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def answer_line(line: str) -> dict[str, Any]:
    try:
        found = answer(json.loads(line))
        json.dumps(found)  # of plain values, or it is told here that it is not
    except Exception as error:  # the edge of this process: the worker waits for a line
        logger.exception("unforeseen")
        reason = f"{type(error).__name__}: {str(error)[:REASON_LENGTH]}"
        found = {"error": error_record(TaskError(f"the site could not answer: {reason}"))}
    return {**found, "worker": {"pid": os.getpid(), "host": os.uname().nodename}}


def tell(answers: IO[str], value: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(value) + "\n")
        answers.flush()
    except OSError:
        sys.exit(1)  # nobody listens any more

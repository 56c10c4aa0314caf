"""What the commands share: their exit codes, their words to the user, and how they tell of what went wrong."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from apps.base.errors import CrossfedError, StorageError, UserMistake

if TYPE_CHECKING:
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 a mistake in the request, 130 interrupted."


def carry_out(work: Callable[[], None]) -> int:
    """Do the work of a command and answer with its exit code; an error becomes one line for the user."""
    try:
        work()
    except UserMistake as error:
        return complain(str(error), MISTAKE)
    except (CrossfedError, OSError) as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain("\nInterrupted", INTERRUPTED)
    return DONE


def say(text: str) -> None:
    print(text, flush=True)


def complain(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def stopped(run: RunDirectory | None, reason: str, code: int) -> int:
    """Tell why a campaign has stopped and how to go on with it."""
    complain(reason, code)
    if run is None:
        return code
    try:
        run.journal.write("driver_stopped", reason=reason.strip())
    except StorageError as error:
        complain(f"(the journal could not take this down: {error})", code)
    stopped_at = max((r["seq"] for r in run.journal.events("driver_started")), default=0)
    for record in run.journal.events("tasks_left"):
        if record["seq"] > stopped_at:
            site = record["site"]
            complain(f"What runs at {site} goes on, what queues there keeps its place: the resume takes it up.", code)
    return complain(f"What is done is kept. Go on with: {command_line('fl_round.py')} --resume {short(run.path)}", code)


def interruption(plan: Plan | None) -> str:
    """What Ctrl-C has ended, by kind of site; of what goes on the journal tells. None: nothing was begun."""
    sites = plan.sites.values() if plan else ()
    batch = [site.name for site in sites if site.own_block]
    ended = ["the workers on this machine have ended"] if any(site.route == "local" for site in sites) else []
    ended += [f"the batch jobs of {', '.join(batch)} are cancelled"] if batch else []
    return "; ".join(["Interrupted", *ended])


def command_line(script: str) -> str:
    """How to call one of these commands from here with this Python."""
    return f"{short(Path(sys.executable))} {short(Path(__file__).resolve().parents[1] / script)}"


def leave(code: int) -> NoReturn:
    """End the process, also where a thread of a library that waits for a dead process would keep it."""
    if any(t is not threading.main_thread() and t.is_alive() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def short(path: Path) -> Path:
    """The path as seen from here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def log_to(path: Path, verbose: bool) -> None:
    """The driver's log goes to a file, and to the terminal if asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for tracebacks
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    if verbose:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, handlers=handlers, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)

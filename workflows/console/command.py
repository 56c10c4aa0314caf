"""Exit codes, messages, signals and the log of the commands."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from apps.base.errors import CrossfedError, UserMistake
from apps.base.plain_text import without_controls
from apps.base.processes import keep_files_private

logger = logging.getLogger(__name__)
DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 a mistake in the request, 130 interrupted."


def carry_out(work: Callable[[], None]) -> int:
    """Do the work of a command and return its exit code; an error becomes one line for the user."""
    try:
        work()
    except UserMistake as error:
        return complain(str(error), MISTAKE)
    except (CrossfedError, OSError) as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain("\nInterrupted", INTERRUPTED)
    return DONE


def stop_in_order() -> None:
    """Make Ctrl-C, a termination request and a lost terminal end the campaign in order.

    Ctrl-C is set as well, because a background job of a shell script starts with it ignored. A lost terminal stays
    ignored if the user asked for that (nohup).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def say(text: str) -> None:
    """Print a line for the user."""
    print(without_controls(text), flush=True)


def complain(text: str, code: int) -> int:
    """Print an error for the user and return the exit code."""
    print(without_controls(text), file=sys.stderr, flush=True)
    return code


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command, whose files only its user may read, and end the process.

    It ends even if a thread of a library still waits for a dead process.
    """
    keep_files_private()
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)
    code = main()
    if any(t is not threading.main_thread() and t.is_alive() and not t.daemon for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class LastingOutput:
    """An output stream whose reader may end (``| head``, ``less``, a lost terminal, a full disk): the work goes on.

    Args:
        stream: the process's own output.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, or nothing any more once that has failed."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Send everything from now on, with what is still buffered, to nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        logger.warning("the output of this command is not read any more (%s); its work goes on", error.strerror)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def lasting(stream: TextIO) -> TextIO:
    """Return an output stream that does not end the command when its reader ends; a closed one stays closed.

    What a terminal without Unicode cannot show becomes a question mark.
    """
    if isinstance(stream, TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
        stream.reconfigure(errors="replace")
    return cast(TextIO, LastingOutput(stream)) if stream is not None else stream


class PlainFormatter(logging.Formatter):
    """Formatter of log lines without control characters: they may quote a site."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback."""
        return without_controls(super().format(record))


def log_to(path: Path, verbose: bool) -> None:
    """Write the driver's log to a file, and to the terminal if ``verbose``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # no tracebacks if the log cannot be written because the disk is full
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    if verbose:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=handlers)


def positive(text: str) -> int:
    """Convert an option's text to a whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)

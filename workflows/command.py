"""What the small commands share: their exit codes, and how they tell of what went wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from apps.errors import CrossfedError, UserMistake

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


def complain(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)

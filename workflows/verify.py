"""Verify a run directory, byte for byte: `python workflows/verify.py runs/NAME`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import CrossfedError, UserMistake
from workflows.console.command import (
    DONE,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    MISTAKE,
    complain,
    leave,
    say,
    stop_in_order,
)
from workflows.console.units import bytes_text, plural

EPILOG = (
    """Finds any changed byte in journal.jsonl, manifests/, artifacts/, model/, campaign.yaml and metrics.csv, and names
it. An end of the journal that was cut off is found with --head, or by a manifest that names a later head. Not
covered: {uncovered}.

"""
    + EXIT_CODES
)
TELL_S = 2.0  # between two lines of progress


class Progress:
    """Tells how much was read, where that takes long."""

    def __init__(self) -> None:
        self.nbytes, self.files, self.told_s = 0, 0, time.monotonic()

    def __call__(self, nbytes: int) -> None:
        self.nbytes, self.files = self.nbytes + nbytes, self.files + 1
        if time.monotonic() > self.told_s + TELL_S:
            self.told_s = time.monotonic()
            say(f"... {plural(self.files, 'file')}, {bytes_text(self.nbytes)} read")


def main(arguments: Sequence[str] | None = None) -> int:
    from workflows.trust.verification import UNCOVERED

    parser = argparse.ArgumentParser(
        prog="verify.py",
        description="Verify that a run is as it was written. Its driver must not be at work.",
        epilog=EPILOG.format(uncovered=UNCOVERED),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="runs/NAME", help="the run directory")
    parser.add_argument(
        "--head", action="append", default=[], dest="heads", metavar="HEX", help="a head of its journal, from a report"
    )
    chosen = parser.parse_args(arguments)
    stop_in_order()
    try:
        return verify(chosen.run_dir, chosen.heads)
    except UserMistake as error:
        return complain(str(error), MISTAKE)
    except (CrossfedError, OSError) as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return complain("\nInterrupted", INTERRUPTED)


def verify(run_dir: Path, heads: Sequence[str]) -> int:
    """Print what is not as it was written, and return the exit code."""
    from workflows.trust.verification import findings_of, summary

    progress, altered = Progress(), 0
    for finding in findings_of(run_dir, heads, progress):
        altered += not finding.remark
        say(f"{'remark' if finding.remark else 'ALTERED'}  {finding}")
    say(f"{plural(progress.files, 'file')}, {bytes_text(progress.nbytes)} read. {summary(run_dir)}")
    if altered:
        return complain(f"{run_dir} is not as it was written: {plural(altered, 'finding')}", FAILED)
    say(f"{run_dir} is as it was written.")
    return DONE


if __name__ == "__main__":
    leave(main)

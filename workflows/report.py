"""Write the report of a run, one self-contained page with figures: `python workflows/report.py runs/NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import CrossfedError
from workflows.console.command import DONE, MISTAKE, complain, leave, say


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the report of a run, finished or not.")
    parser.add_argument("run_dir", type=Path, metavar="runs/NAME", help="the run directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, not into the run directory")
    chosen = parser.parse_args(arguments)
    from workflows.reporting.report import write_report

    try:
        written = write_report(chosen.run_dir, chosen.out)
    except CrossfedError as error:
        return complain(f"report: {error}", MISTAKE)
    say(f"report: {written}")
    return DONE


if __name__ == "__main__":
    leave(main)

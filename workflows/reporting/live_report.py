"""The report while a campaign runs, and at every end of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from apps.base.own_packages import ROOT
from workflows.console.command import say
from workflows.console.pace import Pace
from workflows.console.paths import command_line, short
from workflows.records.run_directory import RunDirectory
from workflows.reporting.report import write_report

FIRST_S = 60.0  # a campaign shorter than this has its report at the end only
SHARE = 0.05  # of one processor core
NICENESS = 10
logger = logging.getLogger(__name__)


class LiveReport:
    """Writes ``report.html`` anew after scored rounds, in a process of its own and only as often as costs little.

    Args:
        run_dir: of the campaign.
        pace: when to write it again.
    """

    def __init__(self, run_dir: Path, pace: Pace | None = None) -> None:
        self.run_dir = run_dir
        self.pace = pace or Pace(SHARE, FIRST_S)
        self.pace.took(0.0)
        self.rounds = 0  # in the newest report
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0

    def tick(self, rounds: int) -> None:
        """Begin a new report if one is due; never waits.

        Args:
            rounds: how many are complete so far.
        """
        if self.process is not None and self.process.poll() is not None:
            self._finished(self.process)
        if self.process is None and rounds > self.rounds and self.pace.due():
            self.rounds, self.began = rounds, time.monotonic()
            self.process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes] | None:
        command = [sys.executable, str(ROOT / "workflows" / "report.py"), str(self.run_dir)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        except OSError as error:
            logger.warning("the report is written at the end only: %s", error)
            self.pace.took(self.pace.share * 3600)
            return None
        return process

    def _finished(self, process: subprocess.Popen[bytes]) -> None:
        _, words = process.communicate()
        if process.returncode:
            logger.warning("report.py ended with code %s: %s", process.returncode, words.decode(errors="replace"))
        self.pace.took(time.monotonic() - self.began)
        self.process = None

    def close(self) -> None:
        """End a report that is being written; the one before stays whole."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def leave_report(run: RunDirectory) -> None:
    """Write the report of a campaign that has stopped, unless there is nothing to report or it was just written."""
    worked = any(record.get("app") in ("evaluate", "local_train") for record in run.journal.events("task_done"))
    page = run.path / "report.html"
    if not worked or (page.exists() and page.stat().st_mtime >= run.journal.path.stat().st_mtime):
        return
    try:
        say(f"The report so far is {short(write_report(run.path))}")
    except KeyboardInterrupt:
        say(f"The report was left out; {report_command(run.path)} writes it.")
    except Exception:  # the campaign has ended: whatever is wrong with a picture must not change how
        logger.exception("the report could not be written")
        say(f"The report could not be written (logs/driver.log says why); {report_command(run.path)} writes it.")


def report_command(path: Path) -> str:
    """Return the command that writes the report of a run."""
    return f"{command_line('report.py')} {short(path)}"

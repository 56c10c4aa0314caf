"""Progress of the current transfer on a terminal: a bar with the rate; nothing without a terminal."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from workflows.console.command import FAILED, complain

logger = logging.getLogger(__name__)


class Meter:
    """A progress bar for one piece of work at a time; printed lines appear above it."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bars = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.work, self.held_up = "", ""
        self.task: Any = None

    def __enter__(self) -> Meter:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, work: str, nbytes: int, total: int) -> None:
        """Show the current work, its bytes so far, and its bytes in all."""
        if work != self.work:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.work, self.task = work, self.bars.add_task(work, total=total)
        self.bars.update(self.task, completed=nbytes, description=f"{work}{self.held_up}")

    def show_trouble(self, trouble: str | None) -> None:
        """Show what holds up the work, or None."""
        if trouble and not self.held_up:
            logger.warning("%s is held up: %s", self.work, trouble)
            if self.bars.disable:
                complain(f"{self.work} is held up: {trouble}", FAILED)
        self.held_up = f" (held up: {trouble})" if trouble else ""
        if self.task is not None:
            self.bars.update(self.task, description=f"{self.work}{self.held_up}")

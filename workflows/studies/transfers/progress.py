"""How far the present transfer is, on a terminal: a bar with the rate; nothing where there is no terminal."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from workflows.console.command import FAILED, complain

logger = logging.getLogger(__name__)


class Meter:
    """A bar for one thing at a time; lines that are printed meanwhile stand above it."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.bars = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.words, self.held_up = "", ""
        self.task: Any = None

    def __enter__(self) -> Meter:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, words: str, nbytes: int, total: int) -> None:
        """Tell what is done now, how many bytes of it are, and how many it has."""
        if words != self.words:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.words, self.task = words, self.bars.add_task(words, total=total)
        self.bars.update(self.task, completed=nbytes, description=f"{words}{self.held_up}")

    def trouble(self, what: str | None) -> None:
        """Tell what holds it up, or None."""
        if what and not self.held_up:
            logger.warning("%s is held up: %s", self.words, what)
            if self.bars.disable:
                complain(f"{self.words} is held up: {what}", FAILED)
        self.held_up = f" (held up: {what})" if what else ""
        if self.task is not None:
            self.bars.update(self.task, description=f"{self.words}{self.held_up}")

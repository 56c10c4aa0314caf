"""Progress of a training task: a small file at the site that the driver can read while the task runs."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from data.foreign import parse_json, read_start

FILE = "progress.json"
PERIOD_S = 0.3
LONGEST = 4096


class Progress(TypedDict):
    """State of a training task at one time."""

    task_id: str
    round: int
    phase: str  # loading, training, saving
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float
    time: float


class ProgressFile:
    """Writer of the progress, at most every ``PERIOD_S`` seconds; readers see a whole record, new or old.

    The file is for people: a record that cannot be written is left out, and the task continues.

    Args:
        root: the site's own storage.
        task_id: of the task.
        round: of the task.
        steps: that were asked for.
        out: folder of what leaves the site; if it is not below ``root``, the progress is written there too.
        with_loss: False if losses must not leave the site.
    """

    def __init__(self, root: Path, task_id: str, round: int, steps: int, out: Path, *, with_loss: bool = True) -> None:
        folders = [root] if out.is_relative_to(root) else [root, out]
        self.paths = [folder / FILE for folder in folders]
        self.task_id, self.round, self.steps, self.with_loss = task_id, round, steps, with_loss
        self.written = 0.0

    def phase(self, phase: str, step: int = 0) -> None:
        """Report a new phase after ``step`` steps."""
        self._write(phase, step, None, 0.0)

    def step(self, step: int, loss: float, tokens_per_s: float) -> None:
        """Report a finished step; its loss in nats."""
        if time.monotonic() - self.written >= PERIOD_S or step == self.steps:
            self._write("training", step, loss, tokens_per_s)

    def _write(self, phase: str, step: int, loss: float | None, tokens_per_s: float) -> None:
        self.written = time.monotonic()
        record = Progress(
            task_id=self.task_id,
            round=self.round,
            phase=phase,
            step=step,
            steps=self.steps,
            loss=loss if self.with_loss else None,
            tokens_per_s=tokens_per_s,
            time=time.time(),
        )
        for path in self.paths:
            temporary = path.with_suffix(".part")
            with suppress(OSError):
                temporary.write_text(json.dumps(record))
                os.replace(temporary, path)


def read_progress(root: Path) -> Progress | None:
    """Return the last progress that a process of this site has written, or None if there is none to read."""
    try:
        found: Progress = parse_json(progress_text(root))
    except (FileNotFoundError, ValueError):
        return None
    return found


def progress_text(root: Path) -> str:
    """Return the text of a site's progress; at most ``LONGEST`` bytes of it.

    Raises:
        OSError: there is none, it is no regular file, or it cannot be read.
    """
    return read_start(root / FILE, LONGEST).decode(errors="replace")

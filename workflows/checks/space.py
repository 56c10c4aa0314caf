"""Check of the disk space that a campaign's models and updates need over all its rounds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from workflows.console.units import bytes_text, plural
from workflows.planning.evaluation import WIDTHS
from workflows.planning.memory.model import shape_of
from workflows.planning.plan import Plan


@dataclass(frozen=True)
class ServerFiles:
    """Bytes that the server keeps: the first model, and a period's files."""

    model: int
    period: int


def server_files(plan: Plan) -> ServerFiles | None:
    """Return what the server keeps; None if the model's configuration is not known here."""
    spec, updates = plan.server_work["model"], len(plan.sites)
    shape = shape_of(spec)
    if shape is None:
        return None
    if spec["adapter"]:
        model = sent = shape.trained * WIDTHS["float32"]
    else:
        model, sent = shape.trained * WIDTHS[spec["dtype"]], shape.trained * WIDTHS[spec["traffic"]]
    copy = sent if sent < model else 0  # what is sent is a rounded copy
    return ServerFiles(model, model + copy + updates * sent)


def space_text(plan: Plan, run_dir: Path) -> str | None:
    """Return what the server keeps over all rounds, and the free space if it is less; None if the size is unknown."""
    files = server_files(plan)
    if files is None:
        return None
    place = next(p for p in (run_dir.resolve(), *run_dir.resolve().parents) if p.exists())
    free, period = shutil.disk_usage(place).free, plan.campaign.period
    total = files.model + files.period * plan.campaign.rounds
    text = (
        f"{bytes_text(files.model)} a model, {bytes_text(files.period)} of models and updates a {period}:"
        f" {bytes_text(total)} are kept over all {period}s"
    )
    if total < free:
        return text
    rounds = max(0, (free - files.model) // files.period)
    return f"{text}, but {place} has {bytes_text(free)} of free space: enough for {plural(rounds, period)}"

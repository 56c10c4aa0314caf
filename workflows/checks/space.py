"""Check of the disk space that a campaign's models and updates need over all its rounds."""

from __future__ import annotations

import shutil
from pathlib import Path

from workflows.console.units import bytes_text, plural
from workflows.planning.memory.model import shape_of
from workflows.planning.plan import Plan

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


def model_bytes(plan: Plan) -> int | None:
    """Return the bytes of one model or update of a campaign; None if the model's configuration is not known here."""
    spec = plan.server_work["model"]
    shape = shape_of(spec)
    if shape is None:
        return None
    return shape.trained * (DTYPE_BYTES["float32"] if spec["adapter"] else DTYPE_BYTES[spec["dtype"]])


def space_text(plan: Plan, run_dir: Path) -> str | None:
    """Return what the server keeps over all rounds, and the free space if it is less; None if the size is unknown."""
    each = model_bytes(plan)
    if each is None:
        return None
    place = next(p for p in (run_dir.resolve(), *run_dir.resolve().parents) if p.exists())
    free, files, period = shutil.disk_usage(place).free, len(plan.sites) + 1, plan.campaign.period
    total = each * (1 + files * plan.campaign.rounds)
    text = f"{bytes_text(each)} a model, {files} of them a {period}: {bytes_text(total)} are kept over all {period}s"
    if total < free:
        return text
    rounds = max(0, (free - each) // (each * files))
    return f"{text}, but {place} has {bytes_text(free)} of free space: enough for {plural(rounds, period)}"

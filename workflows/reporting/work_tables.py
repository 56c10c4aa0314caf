"""Tables of the report on the work at the sites: samples that are cut, and where the time of a round went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from workflows.console.units import seconds_text
from workflows.records.event_log import TaskRun, trainings
from workflows.reporting.run_record import RunRecord
from workflows.reporting.tables import Table

PARTS = ("load", "data", "training", "checkpoints", "update", "other")
MEASURED = ("load_s", "verify_s", "data_s", "save_s", "update_s", "train_s", "started", "ended")


def cut_table(run: RunRecord) -> Table | None:
    """Return the table of samples that lost a part at the limit of tokens; None where no site has recorded any."""
    newest = {str(event.get("site")): event for event in run.journal.named("enrolled")}
    rows = [
        [site, str(task), f"{(event.get('per_task') or {}).get(task, 0):,}", *(f"{n:,}" for n in _parts_cut(parts))]
        for site, event in newest.items()
        for task, parts in (event.get("cut") or {}).items()
    ]
    limits = sorted({int(event.get("max_tokens") or 0) for event in newest.values()})
    note = f"Samples longer than data.max_tokens ({', '.join(f'{limit:,}' for limit in limits)}): the question or the "
    note += "answer loses its end. Tasks that are not listed have none."
    columns = ("site", "task", "samples", "questions cut", "answers cut")
    return Table("Samples that are cut", columns, rows, note) if rows else None


def _parts_cut(parts: Mapping[str, Any]) -> tuple[int, int]:
    return int(parts.get("question") or 0), int(parts.get("answer") or 0)


def block_time_table(run: RunRecord) -> Table | None:
    """Return the table of the mean time of a round at each site by its parts; None before the first training."""
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for task in trainings(run.tasks):
        if (parts := time_parts(task)) is not None:
            measured[task.site].append(parts)
    rows = [_time_row(site, measured[site]) for site in run.sites if measured[site]]
    what = "round" if run.period == "round" else "request"
    note = f"Mean over the {what}s as the site measured it. Load: check and read the model. Data: open its shard. "
    note += "Training: all steps, with the encoding of their samples. Update: gather and write it. The start "
    note += "of ranks, queues, transfers and the wait for other sites come before or after and are in no column. For a "
    note += f"{what} with several attempts all columns but training are of the last one."
    columns = ("site", f"{what}s", *PARTS, "sum", "training share")
    return Table(f"Where the time of a {what} went", columns, rows, note) if rows else None


def _time_row(site: str, measured: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the row of a site: means of the parts, their sum, and the share that is training."""
    means = [sum(parts[name] for parts in measured) / len(measured) for name in PARTS]
    whole = sum(means)
    share = means[PARTS.index("training")] / whole if whole else 0.0
    return [site, str(len(measured)), *map(seconds_text, (*means, whole)), f"{share:.0%}"]


def time_parts(task: TaskRun) -> dict[str, float] | None:
    """Return the seconds of a finished training by part; None if its manifest does not have them."""
    found = task.result
    if not all(isinstance(found.get(key), int | float) for key in MEASURED):
        return None
    load = max(0.0, found["load_s"] - found["data_s"])
    known = (load, found["data_s"], found["train_s"], found["save_s"], found["update_s"])
    whole = found["ended"] - found["started"] + found["verify_s"]  # the hash of the base is checked before the start
    return dict(zip(PARTS, map(float, (*known, max(0.0, whole - sum(known)))), strict=True))

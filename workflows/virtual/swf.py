"""Traces of batch queues in the Standard Workload Format, and the user's own history of waits.

Source of the format: Chapin et al., 1999; columns used (from 1): 2 submit, 3 wait, 4 run, 5 nodes used, 8 nodes
requested, 9 walltime requested; seconds and counts, -1 for unknown.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.errors import UserMistake

if TYPE_CHECKING:
    import numpy as np

COLUMNS = {"submit_s": 1, "wait_s": 2, "run_s": 3, "nodes": 4, "asked_nodes": 7, "asked_s": 8}


@dataclass(frozen=True)
class Trace:
    """Jobs in the order of submission; arrays of equal length, float64, times in seconds from the first job."""

    submit_s: np.ndarray
    wait_s: np.ndarray
    run_s: np.ndarray
    nodes: np.ndarray
    asked_s: np.ndarray  # walltime requested

    def __len__(self) -> int:
        return len(self.submit_s)

    @property
    def span_s(self) -> float:
        return float(self.submit_s[-1])

    def chosen(self, mask: np.ndarray) -> Trace:
        return Trace(
            self.submit_s[mask], self.wait_s[mask], self.run_s[mask], self.nodes[mask], self.asked_s[mask]
        )  # fmt: skip


def read_swf(path: Path) -> Trace:
    """A trace from a file, plain or compressed by gzip; jobs without a wait or a size are left out.

    Raises:
        UserMistake: no file, not this format, or fewer than 50 usable jobs.
    """
    import numpy as np

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as stream:
            rows = [line.split() for line in stream if line.strip() and not line.startswith(";")]
        table = np.array([[float(row[at]) for at in COLUMNS.values()] for row in rows])
    except (OSError, EOFError, UnicodeDecodeError, ValueError, IndexError) as error:
        word = f"cannot be read as a trace in Standard Workload Format: {error}"
        raise UserMistake(word, file=str(path), remedy="Name a .swf or .swf.gz file") from None
    return trace_of(dict(zip(COLUMNS, table.T, strict=True)) if len(table) else {}, path)


def trace_of(columns: dict[str, np.ndarray], path: Path) -> Trace:
    """The usable jobs of raw columns; raises UserMistake for too few."""
    import numpy as np

    if columns:
        nodes = np.where(columns["asked_nodes"] > 0, columns["asked_nodes"], columns["nodes"])
        asked = np.where(columns["asked_s"] > 0, columns["asked_s"], columns["run_s"])
        usable = (columns["wait_s"] >= 0) & (nodes > 0) & (asked > 0) & (columns["submit_s"] >= 0)
        order = np.argsort(columns["submit_s"][usable], kind="stable")
        kept = [a[usable][order] for a in (columns["submit_s"], columns["wait_s"], columns["run_s"], nodes, asked)]
        if len(order) >= 50 and kept[0][-1] > kept[0][0]:
            return Trace(kept[0] - kept[0][0], *kept[1:])
    raise UserMistake("has fewer than 50 jobs with a wait, a size and a walltime", file=str(path))


def similar_jobs(trace: Trace, walltime_s: float, least: int = 200) -> Trace:
    """The jobs most like a small one of this walltime: the smaller half by nodes, asked for about as long.

    The band of walltimes widens until ``least`` jobs are in it, or all are.
    """
    import numpy as np

    small = trace.nodes <= np.quantile(trace.nodes, 0.5)
    for factor in (1.5, 2.0, 3.0, 6.0, float("inf")):
        mask = small & (trace.asked_s <= walltime_s * factor) & (trace.asked_s >= walltime_s / factor)
        if mask.sum() >= min(least, small.sum()):
            break
    return trace.chosen(mask)

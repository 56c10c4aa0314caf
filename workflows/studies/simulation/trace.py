"""Jobs of a batch queue as arrays, from a trace in the Standard Workload Format or from the user's own history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import UserMistake
from workflows.records.queue_history import COLUMNS as HISTORY_COLUMNS
from workflows.studies.queues.sources import history_reading, read_content
from workflows.studies.queues.swf import read_jobs

if TYPE_CHECKING:
    import numpy as np

LEAST_OWN_JOBS = 5  # for a machine of the user's history
COLUMNS = {"submit_s": 2, "wait_s": 3, "run_s": 4, "nodes": 5, "requested_nodes": 8, "requested_s": 9}  # of the format


@dataclass(frozen=True)
class Trace:
    """Jobs in the order of submission; arrays of equal length, float64, times in seconds from the first job."""

    submit_s: np.ndarray
    wait_s: np.ndarray
    run_s: np.ndarray
    nodes: np.ndarray
    requested_s: np.ndarray  # walltime requested

    def __len__(self) -> int:
        return len(self.submit_s)

    @property
    def span_s(self) -> float:
        """Return the seconds from the first to the last submission."""
        return float(self.submit_s[-1])

    def chosen(self, mask: np.ndarray) -> Trace:
        """Return the jobs of a boolean mask."""
        return Trace(self.submit_s[mask], self.wait_s[mask], self.run_s[mask], self.nodes[mask], self.requested_s[mask])


def read_trace(path: Path) -> Trace:
    """Read a trace from a file, plain or compressed by gzip; jobs without a wait or a size are left out.

    Raises:
        UserMistake: the file is missing, of another format, or has fewer than 50 usable jobs.
    """
    jobs, _ = read_jobs(path.name, read_content(path))
    return trace_of({name: jobs[number].to_numpy(float) for name, number in COLUMNS.items()}, path)


def trace_of(columns: dict[str, np.ndarray], path: Path) -> Trace:
    """Return the usable jobs of raw columns; raises UserMistake if there are too few."""
    import numpy as np

    if len(columns["nodes"]):
        nodes = np.where(columns["requested_nodes"] > 0, columns["requested_nodes"], columns["nodes"])
        walltime = np.where(columns["requested_s"] > 0, columns["requested_s"], columns["run_s"])
        usable = (columns["wait_s"] >= 0) & (nodes > 0) & (walltime > 0) & (columns["submit_s"] >= 0)
        order = np.argsort(columns["submit_s"][usable], kind="stable")
        kept = [a[usable][order] for a in (columns["submit_s"], columns["wait_s"], columns["run_s"], nodes, walltime)]
        if len(order) >= 50 and kept[0][-1] > kept[0][0]:
            return Trace(kept[0] - kept[0][0], *kept[1:])
    raise UserMistake("has fewer than 50 jobs with a wait, a size and a walltime", file=str(path))


def machine_traces(path: Path, walltime_s: float) -> tuple[Trace, ...]:
    """Return the traces of a replay, one for each machine.

    From a trace the jobs like ours; from the user's history all jobs, as these were like ours when they were submitted.

    Raises:
        UserMistake: the file is neither, or has too few jobs.
    """
    if not is_history(path):
        return (similar_jobs(read_trace(path), walltime_s),)
    waits = history_reading(path).waits
    found = [own_trace(jobs["submitted"], jobs["wait_s"]) for _, jobs in waits.groupby("machine")]
    enough = tuple(trace for trace in found if len(trace) >= LEAST_OWN_JOBS and trace.span_s > 0)
    if not enough:
        raise UserMistake(f"has no machine with {LEAST_OWN_JOBS} jobs that have started", file=str(path))
    return enough


def is_history(path: Path) -> bool:
    """Return True if a file is a user's history of blocks; raises UserMistake if it cannot be read."""
    first = next((line for line in read_content(path).splitlines() if line.strip()), "")
    return all(name in first for name in HISTORY_COLUMNS)


def own_trace(submitted_s: Sequence[float], waited_s: Sequence[float]) -> Trace:
    """Return the user's own jobs at a machine, from the times of their submission and their waits."""
    import numpy as np

    order = np.argsort(np.asarray(submitted_s), kind="stable")
    submitted, waited = np.asarray(submitted_s, float)[order], np.asarray(waited_s, float)[order]
    unknown = np.ones_like(submitted)
    return Trace(submitted - submitted[0], waited, unknown, unknown, unknown)


def similar_jobs(trace: Trace, walltime_s: float, least: int = 200) -> Trace:
    """Return the jobs most like a small one of this walltime: the smaller half by nodes, with a similar walltime.

    The band of walltimes widens until ``least`` jobs are in it, or all are.
    """
    import numpy as np

    small = trace.nodes <= np.quantile(trace.nodes, 0.5)
    for factor in (1.5, 2.0, 3.0, 6.0, float("inf")):
        mask = small & (trace.requested_s <= walltime_s * factor) & (trace.requested_s >= walltime_s / factor)
        if mask.sum() >= min(least, small.sum()):
            break
    return trace.chosen(mask)

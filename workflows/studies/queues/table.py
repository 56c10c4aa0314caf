"""Waits by nodes and walltime: the bins, their quantiles, and the tables of these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workflows.console.units import DAY_S, HOUR_S, seconds_text
from workflows.studies.tables import terminal_table

if TYPE_CHECKING:
    from pandas import DataFrame, Series
    from rich.table import Table

# the limits are those that facilities set for their queues; each bin holds its upper limit
WALLTIMES = (
    (900, "to 15 min"),
    (1800, "15–30 min"),
    (HOUR_S, "30–60 min"),
    (2 * HOUR_S, "1–2 h"),
    (3 * HOUR_S, "2–3 h"),
    (6 * HOUR_S, "3–6 h"),
    (12 * HOUR_S, "6–12 h"),
    (DAY_S, "12–24 h"),
    (2 * DAY_S, "1–2 d"),
    (3 * DAY_S, "2–3 d"),
    (7 * DAY_S, "3–7 d"),
    (math.inf, "over 7 d"),
)
UNKNOWN = len(WALLTIMES)  # the bin of jobs of unknown walltime
QUANTILES = {"median_s": 0.5, "p75_s": 0.75, "p90_s": 0.9}
KEYS = ["machine", "queue", "node_bin", "walltime_bin"]


def node_bins(nodes: Series) -> Series:
    """Return the number of the bin of each node count: 0 for 1, then 2, 3–4, 5–8 and so on, doubling."""
    return nodes.map(lambda count: (int(count) - 1).bit_length())


def node_range(number: int) -> tuple[int, int]:
    """Return the fewest and the most nodes of a bin."""
    return 2 ** (number - 1) + 1 if number else 1, 2**number


def node_label(number: int) -> str:
    """Return the name of a bin of nodes."""
    low, high = node_range(number)
    return f"{low}–{high}" if low < high else str(high)


def walltime_bins(walltime_s: Series) -> Series:
    """Return the index in ``WALLTIMES`` of the bin of each walltime, or ``UNKNOWN``."""
    import numpy as np

    limits = [limit for limit, _ in WALLTIMES]
    found = np.searchsorted(limits, walltime_s.fillna(0.0).to_numpy(), side="left")
    return walltime_s.isna().map({True: UNKNOWN, False: 0}) + np.where(walltime_s.isna(), 0, found)


def walltime_range(number: int) -> tuple[float, float]:
    """Return the seconds above which a bin starts and with which it ends; NaN for the unknown ones."""
    if number == UNKNOWN:
        return math.nan, math.nan
    return WALLTIMES[number - 1][0] if number else 0, WALLTIMES[number][0]


def walltime_label(number: int) -> str:
    """Return the name of a bin of walltimes."""
    return "unknown" if number == UNKNOWN else WALLTIMES[number][1]


def with_bins(waits: DataFrame) -> DataFrame:
    """Return the waits with columns for both bins."""
    return waits.assign(node_bin=node_bins(waits["nodes"]), walltime_bin=walltime_bins(waits["walltime_s"]))


def quantile(waits_s: Series, share: float) -> float:
    """Return a quantile of waits, interpolated linearly; NaN if fewer than one job is expected beyond it.

    So the 90 % quantile needs ten jobs. The median of any number is given: of a single job it is its wait.
    """
    enough = len(waits_s) * (1 - share) > 1 - 1e-9
    return float(waits_s.quantile(share)) if enough or share <= 0.5 else math.nan


def summarise(waits: DataFrame) -> DataFrame:
    """Return a row for each machine, queue, node bin and walltime bin with jobs.

    Columns: machine, queue, node_bin, walltime_bin, jobs, median_s, p75_s, p90_s (``quantile``).
    """
    import pandas

    rows = []
    for key, group in with_bins(waits).groupby(KEYS):
        values = {name: quantile(group["wait_s"], share) for name, share in QUANTILES.items()}
        rows.append({**dict(zip(KEYS, key, strict=True)), "jobs": len(group), **values})
    return pandas.DataFrame(rows, columns=[*KEYS, "jobs", *QUANTILES])


def as_csv(summary: DataFrame) -> str:
    """Return the table as CSV with the limits of each bin as numbers; empty cells for unknown limits and quantiles."""
    import pandas

    nodes = pandas.DataFrame(map(node_range, summary["node_bin"]), columns=["nodes_from", "nodes_to"])
    limits = ["walltime_over_s", "walltime_to_s"]
    walltimes = pandas.DataFrame(map(walltime_range, summary["walltime_bin"]), columns=limits, dtype=float)
    table = pandas.concat([summary[["machine", "queue"]], nodes, walltimes, summary[["jobs", *QUANTILES]]], axis=1)
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def as_table(summary: DataFrame) -> Table:
    """Return the table for the terminal, a section for each queue."""
    many = summary["machine"].nunique() > 1
    sections = []
    for (machine, queue), group in summary.groupby(["machine", "queue"]):
        rows = []
        for row in group.to_dict("records"):
            values = ["–" if math.isnan(row[name]) else seconds_text(row[name]) for name in QUANTILES]
            rows.append([node_label(row["node_bin"]), walltime_label(row["walltime_bin"]), f"{row['jobs']:,}", *values])
        sections.append(((machine, queue) if many else (queue,), rows))
    columns = [*(["machine"] if many else []), "queue", "nodes", "walltime", "jobs", "median", "p75", "p90"]
    return terminal_table("wait by nodes and walltime", columns, 4 if many else 3, sections)

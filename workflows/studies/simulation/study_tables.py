"""The tables of an algorithm study: runs, curves, and comparisons of the strategies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from workflows.console.units import HOUR_S
from workflows.studies.simulation.paired import difference_of_medians, median_interval, ratio_of_medians, wins
from workflows.studies.simulation.runs import node_hours_to, time_to
from workflows.studies.tables import write_csv

Result = dict[str, Any]
RUN_COLUMNS = (
    "strategy",
    "seed",
    "scenario",
    "sites",
    "time_to_target_s",
    "final_loss",
    "final_accuracy",
    "steps",
    "node_hours",
    "worst_task_loss",
)
DETAIL_COLUMNS = (
    "strategy",
    "seed",
    "versions",
    "node_hours_to_target",
    "wasted_node_hours",
    "mean_staleness",
    "max_staleness",
    "least_share",
    "most_share",
    "failure",
)
SUMMARY_COLUMNS = (
    "strategy",
    "hours to target",
    "node-hours to it",
    "final loss",
    "worst task loss",
    "steps",
    "node-hours",
    "of them wasted",
)
COMPARISON_COLUMNS = (
    "against",
    "time ratio",
    "seeds won",
    "node-hours to target, ratio",
    "final loss -",
    "worst task loss -",
    "node-hours -",
)


def run_row(result: Result, target: float) -> list[Any]:
    """Return a run's row of runs.csv."""
    run, reached = result["run"], time_to(result, target)
    return [
        run["strategy"],
        run["seed"],
        run["scenario"],
        run["sites"],
        "" if reached is None else f"{reached:.1f}",
        f"{result['final_loss']:.6f}",
        f"{result['final_accuracy']:.6f}",
        result["steps"],
        f"{result['node_hours']:.4f}",
        f"{result['worst_task_loss']:.6f}",
    ]


def detail_row(result: Result, target: float) -> list[Any]:
    """Return a run's row of details.csv."""
    spent = node_hours_to(result, target)
    counts = result["staleness"]
    total = sum(n for _, n in counts) or 1
    mean = sum(s * n for s, n in counts) / total
    shares = result["shares"].values()
    return [
        result["run"]["strategy"],
        result["run"]["seed"],
        result["versions"],
        "" if spent is None else f"{spent:.4f}",
        f"{result['wasted_node_hours']:.4f}",
        f"{mean:.3f}",
        max((s for s, _ in counts), default=0),
        f"{min(shares):.4f}",
        f"{max(shares):.4f}",
        result["failure"] or "",
    ]


def write_tables(folder: Path, results: Sequence[Result], target: float) -> None:
    """Write runs.csv, details.csv, curves.csv, staleness.csv and shares.csv."""
    write_csv(folder / "runs.csv", RUN_COLUMNS, (run_row(result, target) for result in results))
    write_csv(folder / "details.csv", DETAIL_COLUMNS, (detail_row(result, target) for result in results))
    curves = (
        (result["run"]["strategy"], result["run"]["seed"], model, f"{time_s:.1f}", f"{loss:.6f}")
        for result in results
        for model, points in (("global", result["curve"]), *result["site_curves"].items())
        for time_s, loss, *_ in points
    )
    write_csv(folder / "curves.csv", ("strategy", "seed", "model", "time_s", "loss"), curves)
    counted = ((name, *pair) for name, runs in by_strategy(results).items() for pair in staleness_counts(runs))
    write_csv(folder / "staleness.csv", ("strategy", "staleness", "updates"), counted)
    shares = (
        (result["run"]["strategy"], result["run"]["seed"], site, f"{share:.6f}")
        for result in results
        for site, share in result["shares"].items()
    )
    write_csv(folder / "shares.csv", ("strategy", "seed", "site", "share"), shares)


def staleness_counts(results: Sequence[Result]) -> list[tuple[int, int]]:
    """Return (versions made since its start, number of updates counted at that staleness) over all runs."""
    counts: Counter[int] = Counter()
    for result in results:
        counts.update(dict(result["staleness"]))
    return sorted(counts.items())


def by_strategy(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each strategy in the order of the seeds."""
    grouped: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r["run"]["seed"]):
        grouped.setdefault(result["run"]["strategy"], []).append(result)
    order = list(dict.fromkeys(result["run"]["strategy"] for result in results))
    return {name: grouped[name] for name in order}


def times(results: Sequence[Result], target: float) -> list[float]:
    """Return the hours to the target; infinite for runs that did not reach it."""
    found = (time_to(result, target) for result in results)
    return [math.inf if time_s is None else time_s / HOUR_S for time_s in found]


def costs(results: Sequence[Result], target: float) -> list[float]:
    """Return the node-hours spent until the target; infinite for runs that did not reach it."""
    found = (node_hours_to(result, target) for result in results)
    return [math.inf if hours is None else hours for hours in found]


def summary_rows(results: Sequence[Result], target: float) -> list[list[str]]:
    """Return medians and their intervals, a row for each strategy."""
    rows = []
    for name, runs in by_strategy(results).items():
        columns = [
            times(runs, target),
            costs(runs, target),
            *(
                [r[key] for r in runs]
                for key in ("final_loss", "worst_task_loss", "steps", "node_hours", "wasted_node_hours")
            ),
        ]
        rows.append([name, *(str(median_interval(values)) for values in columns)])
    return rows


def rank_of(results: Sequence[Result], target: float) -> tuple[float, float]:
    """Return (median hours to the target, median final loss); less is better."""
    return median_interval(times(results, target)).value, median([r["final_loss"] for r in results])


def comparison_rows(results: Sequence[Result], target: float, ours: str) -> list[list[str]]:
    """Compare our strategy with each other one, seed by seed: ratios and differences of medians with intervals.

    The strategy that is first at the target comes first; of those that do not reach it, the one with the least loss.
    """
    grouped = by_strategy(results)
    mine = grouped.pop(ours)
    rows = []
    for name, theirs in sorted(grouped.items(), key=lambda item: rank_of(item[1], target)):
        rows.append(
            [
                name,
                str(ratio_of_medians(times(mine, target), times(theirs, target))),
                f"{wins(times(mine, target), times(theirs, target)):.2f}",
                str(ratio_of_medians(costs(mine, target), costs(theirs, target))),
                *(
                    str(difference_of_medians([r[key] for r in mine], [r[key] for r in theirs]))
                    for key in ("final_loss", "worst_task_loss", "node_hours")
                ),
            ]
        )
    return rows

"""The settings of the study's contestants: a small grid for each, on seeds that the study does not use.

python tests/benchmarks/strategy_grid.py SCENARIO [--seeds 6] [--hours H] [--strategies A,B] [--out FILE]

The best setting has the least median time to the target loss; among those that never get there, the least final loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIRST_SEED = 1000
HOURS = {"calm": 12.0, "lognormal": 20.0, "bursty": 48.0}
ADAPTIVE = {"rate": [0.01, 0.03], "tau": [0.001, 0.01], "steps": [40]}
GRID: dict[str, dict[str, list[Any]]] = {
    "fedavg": {"steps": [10, 20, 40, 100]},
    "fedprox": {"mu": [0.01, 0.1], "steps": [20, 40, 100]},
    "fedavgm": {"beta": [0.5, 0.8], "steps": [20, 40, 100]},
    "fedadagrad": ADAPTIVE,
    "fedadam": ADAPTIVE,
    "fedyogi": ADAPTIVE,
    "fednova": {"steps": [20, 40, 100]},
    "scaffold": {"steps": [20, 40, 100]},
    "diloco": {"mu": [0.5, 0.9], "steps": [20, 40]},
    "fedasync": {"alpha": [0.3, 0.6], "steps": [20, 40]},
    "fedbuff": {"buffer": [2, 4], "momentum": [0.0, 0.5], "steps": [20, 40]},
    "area": {"buffer": [1, 3], "steps": [20, 40, 100]},
    "fedcompass": {"alpha": [0.9], "min_steps": [5, 10, 20], "max_steps": [40, 100], "steps": [40]},
    "fedqueue": {"window_s": [1800.0, 3600.0, 14400.0], "weights": ["steps", "equal"], "steps": [40]},
    "fedecho": {"steps": [20]},
}


def settings(strategy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(steps, keys of the section) of every point of a strategy's grid."""
    grid = GRID[strategy]
    for values in itertools.product(*grid.values()):
        keys = dict(zip(grid, values, strict=True))
        yield keys.pop("steps"), keys


def score(strategy: str, steps: int, keys: dict[str, Any], scenario: Any, seeds: int, hours: float) -> list[float]:
    """Median hours to loss 0.5 and to 0.35, and median final loss."""
    from workflows.virtual.runs import Run, play

    found: list[tuple[float, float, float]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        section = json.dumps({"name": strategy, **keys})
        outcome = play(Run(strategy, section, steps, scenario, 4, 0.1, seed, hours * 3600))
        times = (outcome.first_below(0.5), outcome.first_below(0.35))
        first, second = (math.inf if time is None else time / 3600 for time in times)
        found.append((first, second, outcome.points[-1].score.loss))
    return [statistics.median_high(column) for column in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=tuple(HOURS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--strategies")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    best: dict[str, Any] = {}
    for name in options.strategies.split(",") if options.strategies else GRID:
        tried = []
        for steps, keys in settings(name):
            values = score(name, steps, keys, options.scenario, options.seeds, options.hours or HOURS[options.scenario])
            tried.append(((values[0], values[2]), steps, keys))
            print(name, steps, json.dumps(keys), *(f"{v:.3f}" for v in values), flush=True)
        _, steps, keys = min(tried, key=lambda item: item[0])
        best[name] = [steps, keys]
        if options.out:
            options.out.write_text(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()

"""Search the settings of the study's strategies: sixteen for each one, on seeds that the study does not use.

python tests/benchmarks/strategy_grid.py SCENARIO [--strategies A,B] [--out FILE]

All settings run on three seeds, the best four of each strategy on eight more to their end. The best setting has the
least median time to the target loss; among those that never reach it, the least final loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIRST_SEED, FIRST_SEEDS, MORE_SEEDS, FINALISTS = 1000, 3, 8, 4
TARGET = 0.5
HOURS = {"calm": 5.0, "lognormal": 16.0, "bursty": 40.0}
Setting = tuple[int, dict[str, Any]]
ROUNDS = {"steps": [2, 5, 10, 20, 30, 40, 70, 100]}
FEW = {"steps": [2, 5, 20, 100]}
MIDDLE = {"steps": [5, 10, 20, 40]}
SAMPLES_OR_EQUAL = {"weights": ["samples", "equal"]}
ADAPTIVE = {**FEW, "rate,tau": [(0.01, 0.001), (0.03, 0.001), (0.03, 0.01), (0.1, 0.01)]}
GRID: dict[str, dict[str, list[Any]]] = {  # keys with a comma are set together
    "fedavg": {**ROUNDS, **SAMPLES_OR_EQUAL},
    "fedprox": {**ROUNDS, "mu": [0.01, 0.1]},
    "fedavgm": {**FEW, "beta,rate": [(0.5, 1.0), (0.5, 2.0), (0.8, 2.0), (0.8, 3.0)]},
    "fedadagrad": ADAPTIVE,
    "fedadam": ADAPTIVE,
    "fedyogi": ADAPTIVE,
    "fednova": {**ROUNDS, **SAMPLES_OR_EQUAL},
    "scaffold": {**ROUNDS, **SAMPLES_OR_EQUAL},
    "diloco": {**FEW, "mu,rate": [(0.9, 0.7), (0.9, 1.0), (0.8, 1.3), (0.5, 1.5)]},
    "fedasync": {**MIDDLE, "alpha": [0.2, 0.4, 0.6, 0.9]},
    "fedbuff": {**MIDDLE, "buffer,momentum,rate": [(2, 0.0, 1.0), (2, 0.0, 2.0), (2, 0.5, 1.0), (3, 0.5, 1.0)]},
    "area": {"steps": [5, 20, 40, 100], "buffer": [1, 2, 3, 4]},
    "fedcompass": {
        "steps": [40],
        "alpha": [0.5, 0.7, 0.9, 1.0],
        "min_steps,max_steps": [(2, 10), (5, 40), (10, 40), (20, 100)],
    },
    "fedqueue": {
        "steps": [40],
        "window_s": [900.0, 1800.0, 3600.0, 14400.0],
        "warm_steps": [5, 20],
        "weights": ["steps", "equal"],
    },
    "fedecho": {"steps": [2, 5, 10, 20], "kappa,rate": [(0.005, 2.0), (0.005, 3.0), (0.01, 2.0), (0.0025, 2.0)]},
}


def settings_of(strategy: str) -> list[Setting]:
    """Return (steps, keys of the section) of every point of a strategy's grid."""
    grid, found = GRID[strategy], list[Setting]()
    for values in itertools.product(*grid.values()):
        keys: dict[str, Any] = {}
        for names, value in zip(grid, values, strict=True):
            keys |= dict(zip(names.split(","), value, strict=True)) if "," in names else {names: value}
        found.append((keys.pop("steps"), keys))
    return found


def score(strategy: str, setting: Setting, scenario: Any, seeds: Sequence[int], target: float | None) -> list[float]:
    """Return the median hours to the target loss and to 0.35, and the median last loss; ``target`` ends a campaign."""
    from workflows.studies.simulation.runs import StudyRun, lows, run_campaign, time_to

    steps, keys = setting
    found: list[tuple[float, float, float]] = []
    for seed in seeds:
        section = json.dumps({"name": strategy, **keys})
        run = StudyRun(strategy, section, steps, scenario, 4, 0.1, seed, HOURS[scenario] * 3600)
        result = run_campaign(run, target)
        better = {"lows": lows(result)}
        times = (time_to(better, TARGET), time_to(better, 0.35))
        first, second = (math.inf if time is None else time / 3600 for time in times)
        found.append((first, second, result.points[-1].score.loss))
    return [statistics.median_high(column) for column in zip(*found, strict=True)]


def best_of(strategy: str, scenario: str) -> Setting:
    """Return the best setting of a strategy, by a short comparison of all and a longer one of the best."""

    def ranked(settings: Sequence[Setting], seeds: range, target: float | None) -> list[Setting]:
        found = []
        for setting in settings:
            values = score(strategy, setting, scenario, seeds, target)
            print(strategy, setting[0], json.dumps(setting[1]), len(seeds), *(f"{v:.3f}" for v in values), flush=True)
            found.append(((values[0], values[2]), setting))
        return [setting for _, setting in sorted(found, key=lambda item: item[0])]

    first = range(FIRST_SEED, FIRST_SEED + FIRST_SEEDS)
    finalists = ranked(settings_of(strategy), first, TARGET)[:FINALISTS]
    return ranked(finalists, range(first.stop, first.stop + MORE_SEEDS), None)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=tuple(HOURS))
    parser.add_argument("--strategies")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    best: dict[str, Setting] = {}
    for name in options.strategies.split(",") if options.strategies else GRID:
        best[name] = best_of(name, options.scenario)
        if options.out:
            options.out.write_text(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()

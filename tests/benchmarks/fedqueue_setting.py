"""FedQueue in its own log-normal setting: four sites, every request a job of its own, waits of seconds.

python tests/benchmarks/fedqueue_setting.py [--seeds 10] [--alpha 0.5] [--target 0.5]

T 10 s, theta 2 s, harmonic staleness 0.5, 20 warm steps, mean wait 0.9 s (arXiv 2605.02125 and its code); a step takes
0.25 s, or up to three times that at slow sites; the digits and plain SGD stand for MNIST and Adam. The other four
algorithms request as many steps as FedQueue's first request has (20), or as its window has room for (28). Shown:
median seconds to the target loss, and the last loss after 500 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

BUDGET_S = 500.0
WINDOW: dict[str, Any] = {"name": "fedqueue", "window_s": 10, "safety_s": 2, "warm_steps": 20, "first_wait_s": 0.9}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg", "weights": "equal"},
    "fedasync": {"name": "fedasync", "alpha": 0.9},
    "fedasync as in APPFL": {"name": "fedasync", "alpha": 0.225},
    "fedbuff": {"name": "fedbuff", "buffer": 3},
    "fedcompass": {"name": "fedcompass", "alpha": 0.9, "min_steps": 20, "max_steps": 100},
    "fedqueue": {**WINDOW, "weights": "equal"},
    "fedqueue by steps": {**WINDOW, "weights": "steps"},
    "fedqueue, plain rate": {**WINDOW, "weights": "equal", "scale_rate": False},
}


def results_of(
    section: dict[str, Any], steps: int, slowest: float, sigma: float, mean_s: float, options: Any
) -> list[Any]:
    """Return the result of one campaign for each seed."""
    from pydantic import TypeAdapter

    from workflows.strategies import AnySection
    from workflows.studies.simulation.digits import Digits
    from workflows.studies.simulation.engine import VirtualEngine
    from workflows.studies.simulation.facility import Facility
    from workflows.studies.simulation.waits import LogNormalWaits

    found = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        facilities = tuple(
            Facility(
                f"site{k + 1}",
                0.25 * slowest ** (k / 3),
                max_jobs=1,
                idle_timeout_s=0.0,
                startup_s=0.0,
                saving_s=0.0,
                latency_s=0.0,
            )
            for k in range(4)
        )
        strategy = TypeAdapter(AnySection).validate_python(section).strategy(10**9, steps)
        waits = LogNormalWaits(seed, (mean_s,) * 4, sigma)
        problem = Digits(4, options.alpha, seed, nbytes=0.0)
        found.append(VirtualEngine(strategy, facilities, waits, problem, seed).run(BUDGET_S))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--target", type=float, default=0.5)
    options = parser.parse_args()
    from workflows.studies.simulation.runs import lows, time_to

    os.environ["OMP_NUM_THREADS"] = "1"
    for slowest, sigma, mean_s in ((1.0, 0.4, 0.9), (3.0, 0.4, 0.9), (3.0, 1.2, 0.9), (3.0, 1.2, 4.0)):
        print(f"slowest site {slowest:g} x, sigma {sigma:g}, mean wait {mean_s:g} s", flush=True)
        for name, section in CONTESTANTS.items():
            for steps in (20,) if name.startswith("fedqueue") else (20, 28):
                results = results_of(section, steps, slowest, sigma, mean_s, options)
                times = [time_to({"lows": lows(result)}, options.target) or float("inf") for result in results]
                loss = statistics.median(result.points[-1].score.loss for result in results)
                total = statistics.median(result.steps for result in results)
                middle = statistics.median(times)
                print(f"  {name:22s} {steps} steps: {middle:6.1f} s, loss {loss:.3f}, {total:.0f} steps", flush=True)


if __name__ == "__main__":
    main()

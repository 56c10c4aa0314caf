"""Measure what a round costs on ranks that were kept, against a round on fresh ones.

    python tests/benchmarks/kept_ranks.py [--rounds 5] [--ranks 2] [--steps 3]

One site on this machine; the model is tiny, so that the difference is the start of the ranks and the first load. The
rounds alternate between the two, so that other work on the machine slows both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def measure(rounds: int, ranks: int, steps: int, folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of the rounds on fresh ranks, and of those on kept ones."""
    from training_site import Site

    from apps.base.identity import Place
    from apps.ranks.processes import kept_ranks

    site = Site(folder, None, {"ranks_per_node": ranks, "sharding": "full_shard"})
    fresh, kept = [], []
    for number in range(1, 2 * rounds + 1):
        if number % 2:
            kept_ranks().end()
        began = time.monotonic()
        site.train(Place(site="aurora", round=number), steps=steps)
        (fresh if number % 2 else kept).append(time.monotonic() - began)
    kept_ranks().end()
    return fresh, kept


def spread(values: list[float], form: str = ".2f") -> str:
    """Return the median of some values and their range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        fresh, kept = measure(options.rounds, options.ranks, options.steps, Path(folder))
    ratios = [one / other for one, other in zip(kept, fresh, strict=True)]
    saved = [other - one for one, other in zip(kept, fresh, strict=True)]
    print(f"a round on {options.ranks} fresh ranks, s:  {spread(fresh)}")
    print(f"a round on {options.ranks} kept ranks, s:   {spread(kept)}")
    print(f"kept / fresh:                {spread(ratios)}")
    print(f"saved, s:                    {spread(saved)}")


if __name__ == "__main__":
    main()

"""Verify a run of many rounds, and find random changes of single bytes in it.

``PYTHONPATH=.:tests python tests/benchmarks/verification.py``

Prints how long one verification takes and how many of the changes it finds; exit code 1 if one is not found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from written_run import changed_bytes, covered_files, write_run

from workflows.trust.verification import findings_of


def altered(run_dir: Path) -> list[str]:
    return [finding.place for finding in findings_of(run_dir) if not finding.remark]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--nbytes", type=int, default=150_000, help="of each model and update")
    parser.add_argument("--changes", type=int, default=1000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = write_run(Path(folder) / "run", chosen.rounds, chosen.nbytes)
        files = covered_files(run_dir)
        began = time.perf_counter()
        assert not altered(run_dir)
        once_s, found, named, began = time.perf_counter() - began, 0, 0, time.perf_counter()
        for path, _ in changed_bytes(run_dir, chosen.changes, seed=7):
            places = altered(run_dir)
            found, named = found + bool(places), named + any(path.name in place for place in places)
        nbytes = sum(path.stat().st_size for path in files)
        print(f"{chosen.rounds} rounds, {len(files)} files, {nbytes / 1e6:.1f} MB: verified in {once_s:.2f} s")
        took_s = time.perf_counter() - began
        print(f"{found} of {chosen.changes} changes found, {named} with the right file, in {took_s:.0f} s")
    return 0 if found == named == chosen.changes else 1


if __name__ == "__main__":
    sys.exit(main())

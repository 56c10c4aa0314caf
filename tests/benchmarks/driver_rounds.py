"""Measure what the driver's own work costs a round, and the report a run, against the rounds that are done.

    python tests/benchmarks/driver_rounds.py [--rounds 150 600 1200] [--sites 4]

A journal grows round by round as an engine writes it. After each round the terminal's reader takes the new records and
``metrics.csv`` is written if it is due; that is all the driver does that could grow with the past. The table has CPU
seconds of the last hundred rounds at each length, and of one report; both should grow in proportion or not at all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent), str(Path(__file__).resolve().parent.parent)]
LAST = 100  # rounds over which the cost of one is averaged


class MemoryJournal:
    """Records in memory: what a disk costs is another question."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, time_s: float, event: str, **fields: Any) -> None:
        self.records.append({"seq": len(self.records) + 1, "time": time_s, "event": event, **fields})


def task(journal: MemoryJournal, app: str, number: int, site: str, start: float, end: float, **result: Any) -> None:
    times = {"submitted": start, "started": start, "ended": end}
    journal.add(end, "task_done", app=app, round=number, site=site, key=f"{app}{number}{site}", **times, result=result)


def play(journal: MemoryJournal, number: int, sites: list[str], now: float) -> float:
    """Write the records of one round; return its end."""
    artifact = {"sha256": f"{number:064d}", "nbytes": 1000, "kind": "model"}
    for site in sites:
        task(journal, "stage_out", number, site, now, now + 0.1, artifact=artifact, nbytes_moved=1000)
        trained = {"samples": 4, "tokens": 10, "steps_done": 1, "train_s": 4.0, "loss_last": 4.0}
        task(journal, "local_train", number, site, now + 0.1, now + 5, artifact=artifact, **trained)
        task(journal, "stage_in", number, site, now + 5, now + 5.1, artifact=artifact, nbytes_moved=1000)
        journal.add(now + 5.1, "strategy_event", kind="UpdateArrived", fields={"site": site, "task_id": "t"})
    weights = {site: 1 / len(sites) for site in sites}
    journal.add(now + 5.2, "aggregated", version=number, round=number, weights=weights)
    task(journal, "aggregate", number, "server", now + 5.2, now + 5.3, artifact=artifact, version=number)
    for who in ("global", *sites):
        tasks = {name: {"loss": 4.0, "samples": 4, "tokens": 10, "standard_error": 0.1} for name in ("t1", "t2")}
        scored = {"who": who, "tasks": tasks, "mean_loss": 4.0, "artifact": artifact}
        task(journal, "evaluate", number, "evaluator", now + 5.3, now + 6, **scored)
    return now + 6


def measure(lengths: list[int], sites: list[str], folder: Path) -> list[tuple[int, float, float, int]]:
    """Return, for each number of rounds, CPU seconds of a round and of a report, and the records."""
    from workflows.records.metrics import MetricsFile
    from workflows.records.rounds import RoundReader

    journal: Any = MemoryJournal()
    now, reader, metrics = 1_790_000_000.0, RoundReader(True), MetricsFile(folder / "metrics.csv", journal)
    journal.add(now, "campaign_opened", campaign={"strategy": {"name": "fedavg"}})
    journal.add(now, "driver_started", pid=1, host="h", resumed=False)
    costs, rows, seen = [], [], 0
    for number in range(1, max(lengths) + 1):
        now = play(journal, number, sites, now)
        began = time.process_time()
        reader.read(journal.records[seen:])
        metrics.write_if_due()
        costs.append(time.process_time() - began)
        seen = len(journal.records)
        if number in lengths:
            rows.append((number, sum(costs[-LAST:]) / LAST, report_s(journal, folder, sites, number), seen))
    return rows


def report_s(journal: MemoryJournal, folder: Path, sites: list[str], rounds: int) -> float:
    """Return the CPU seconds of a report about the rounds so far."""
    import json

    import yaml

    from workflows.reporting.report import write_report

    campaign = {"name": "long", "rounds": rounds, "sites": {site: {"tasks": ["t1"]} for site in sites}}
    (folder / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in journal.records))
    began = time.process_time()
    write_report(folder)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs="+", default=[150, 600, 1200])
    parser.add_argument("--sites", type=int, default=4)
    options = parser.parse_args()
    sites = [f"site{n:03d}" for n in range(options.sites)]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.rounds, sites, Path(folder))
    first = rows[0]
    print(
        f"{'rounds':>7}  {'records':>8}  {'a round [CPU ms]':>17}  {'ratio':>5}  {'report [CPU s]':>14}  {'ratio':>5}"
    )
    for rounds, round_s, one_report_s, records in rows:
        ratios = round_s / first[1], one_report_s / first[2]
        line = f"{rounds:7d}  {records:8d}  {1000 * round_s:17.2f}  {ratios[0]:5.1f}"
        print(f"{line}  {one_report_s:14.1f}  {ratios[1]:5.1f}")


if __name__ == "__main__":
    main()

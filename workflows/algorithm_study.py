"""Compare strategies at simulated facilities: many seeds, real training, tables and figures.

python workflows/algorithm_study.py [--scenario calm|lognormal|bursty|replay] [--trace FILE.swf[.gz]] [--seeds N]
    [--sites N] [--strategies A,B] [--alpha DIRICHLET] [--budget-s S] [--target LOSS]
    [--problem digits|tasks] [--out DIR]

Finished campaigns are kept in OUT/done, so that an interrupted study continues and a repeated one is read back.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import UserMistake
from workflows.console.command import EXIT_CODES, carry_out, leave, positive, say
from workflows.console.options import positive_number
from workflows.console.paths import short
from workflows.console.units import plural
from workflows.records.queue_history import history_path
from workflows.reporting.figure_style import save
from workflows.studies.simulation import study_figures as figures
from workflows.studies.simulation.queue_check import LEAST_IN_CELL, QueueCheck, check_queue, paint_queue_check
from workflows.studies.simulation.runs import PROBLEMS, StudyRun, cached_result, code_sha256
from workflows.studies.simulation.scenarios import SCENARIOS, jobs_of
from workflows.studies.simulation.study_strategies import ABLATIONS, CONTESTANTS, KNOWN, OURS, PUBLISHED, setting_of
from workflows.studies.simulation.study_tables import (
    COMPARISON_COLUMNS,
    SUMMARY_COLUMNS,
    comparison_rows,
    summary_rows,
    write_tables,
)
from workflows.studies.simulation.trace import is_history, read_trace
from workflows.studies.tables import terminal_table, write_csv

if TYPE_CHECKING:
    from rich.table import Table

BUDGETS_S = {"calm": 21_600.0, "lognormal": 86_400.0, "bursty": 216_000.0, "replay": 216_000.0}  # 6, 24, 60 hours
TARGET = 0.5  # nats; a guess among ten classes has 2.3
LOG_WIDTH = 160  # of tables that do not go to a terminal


@dataclass(frozen=True)
class AlgorithmStudy:
    """The campaigns to compare, and the folder of the results."""

    runs: tuple[StudyRun, ...]
    target: float
    out: Path
    trace: Path | None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="algorithm_study.py", description="Compare federated algorithms under batch queues.", epilog=EXIT_CODES
    )
    add = parser.add_argument
    add("--scenario", choices=SCENARIOS, default="bursty", help="queue scenario (bursty)")
    add("--trace", type=Path, metavar="FILE.swf[.gz]", help="trace for replay; 'history': your own blocks")
    add("--seeds", type=positive, default=20, metavar="N", help="campaigns of each strategy (20)")
    add("--sites", type=positive, default=4, metavar="N", help="facilities (4)")
    add("--strategies", metavar="A,B", help="names (all), 'ablation', or 'published'")
    add("--alpha", type=positive_number, default=0.1, metavar="DIRICHLET", help="evenness of classes over sites (0.1)")
    budgets = ", ".join(f"{name} {budget_s:.0f}" for name, budget_s in BUDGETS_S.items())
    add("--budget-s", type=positive_number, metavar="S", help=f"virtual seconds ({budgets})")
    add("--target", type=positive_number, default=TARGET, metavar="LOSS", help=f"for the time to target ({TARGET})")
    add("--problem", choices=PROBLEMS, default="digits", help="digits, or the 14 chemistry tasks: hours (digits)")
    add("--first-seed", type=int, default=0, metavar="N", help="first seed (0)")
    add("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="folder of the results (runs/study)")
    add("--workers", type=positive, default=None, metavar="N", help="processes (one for each core)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the arrays are small: more threads would only slow each other down
    return carry_out(lambda: run_study(options))


def run_study(options: argparse.Namespace) -> None:
    """Plan the study, run the campaigns that are missing, and write the report."""
    study = plan(options)
    write_report(study, results_of(study, options.workers or os.cpu_count() or 1))


def plan(options: argparse.Namespace) -> AlgorithmStudy:
    """Return all campaigns, ordered by seed first, so that an early look shows every strategy.

    Raises:
        UserMistake: an unknown strategy, or a trace that is missing or unreadable.
    """
    options.trace = history_path() if options.trace == Path("history") else options.trace
    jobs_of(options.scenario, options.trace)
    trace = str(options.trace) if options.scenario == "replay" else None
    names, budget_s = chosen(options.strategies), options.budget_s or BUDGETS_S[options.scenario]
    settings = {name: setting_of(name, options.scenario) for name in names}
    runs = tuple(
        StudyRun(
            name, section, steps, options.scenario, options.sites, options.alpha, seed, budget_s, trace, options.problem
        )
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for name, (steps, section) in settings.items()
    )
    return AlgorithmStudy(runs, options.target, options.out, options.trace)


def chosen(text: str | None) -> list[str]:
    """Return the strategies of ``--strategies``; raises UserMistake for an unknown one."""
    groups = {"ablation": [OURS, *ABLATIONS], "published": list(PUBLISHED)}
    if text in groups:
        return groups[text]
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) if text else CONTESTANTS
    unknown = [name for name in names if name not in KNOWN]
    if unknown or not names:
        raise UserMistake(
            f"--strategies: unknown strategy {', '.join(unknown)}" if unknown else "--strategies: no strategy given",
            remedy=f"Choose from {', '.join(CONTESTANTS)}",
        )
    return list(names)


def results_of(study: AlgorithmStudy, workers: int) -> list[dict[str, Any]]:
    """Return all results, with a progress bar while campaigns run."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    folder, code = study.out / "done", code_sha256()
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        bar = progress.add_task("campaigns", total=len(study.runs))
        futures = [pool.submit(cached_result, run, str(folder), code) for run in study.runs]
        for future in futures:
            future.add_done_callback(lambda _: progress.advance(bar))
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_report(study: AlgorithmStudy, results: Sequence[dict[str, Any]]) -> None:
    """Write the tables and figures, and print the summary."""
    from rich.console import Console

    write_tables(study.out, results, study.target)
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, LOG_WIDTH)
    summary = summary_rows(results, study.target)
    write_csv(study.out / "summary.csv", SUMMARY_COLUMNS, summary)
    run = study.runs[0]
    seeds = len({r.seed for r in study.runs})
    size = f"{plural(run.sites, 'site')}, {plural(seeds, 'seed')}"
    title = f"{run.scenario}, {size}: median [95 % interval], target loss {study.target:g}"
    console.print(table(title, SUMMARY_COLUMNS, summary))
    names = {r.strategy for r in study.runs}
    if OURS in names and len(names) > 1:
        compared = comparison_rows(results, study.target, OURS)
        write_csv(study.out / "comparison.csv", COMPARISON_COLUMNS, compared)
        console.print(table(f"{OURS} against each, seed by seed", COMPARISON_COLUMNS, compared))
    say(f"Tables and pictures are in {short(study.out)}: {', '.join(draw(study, results))}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for the terminal whose long cells are folded."""
    return terminal_table(title, columns, 1, [((), rows)], overflow="fold")


def draw(study: AlgorithmStudy, results: Sequence[dict[str, Any]]) -> list[str]:
    """Draw the figures and return the names of their files."""
    pictures: dict[str, tuple[Any, ...]] = {
        "loss.png": (figures.paint_curves, results, study.target),
        "site_losses.png": (figures.paint_panels, results),
        "time_to_target.png": (figures.paint_times, results, study.target),
        "staleness.png": (figures.paint_staleness, results),
        "fairness.png": (figures.paint_fairness, results),
        "node_hours.png": (figures.paint_node_hours, results),
    }
    checked = queue_check(study.trace) if study.trace else None
    if checked is not None:
        pictures["queue_model.png"] = (paint_queue_check, checked)
    for name, (paint, *inputs) in pictures.items():
        save(study.out / name, paint, *inputs)
    return list(pictures)


def queue_check(trace: Path) -> QueueCheck | None:
    """Compare the queue model with a trace; None if a history is too short to fit a model to it."""
    machines = jobs_of("replay", trace)
    most = max(machines, key=len)
    if len(most) < LEAST_IN_CELL:
        return None
    return check_queue(most, None if is_history(trace) else read_trace(trace))


if __name__ == "__main__":
    leave(main)

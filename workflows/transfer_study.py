"""Measure how fast models are transferred to the sites of a campaign and back, with files of their size.

python workflows/transfer_study.py [CAMPAIGN.yaml] [--sites A,B,...] [--models A,NAME=PARAMETERS,...] [--repeat N]
                                   [--dtype bfloat16] [--budget-gb N] [--out DIR] [--set KEY=VALUE]... [--dry-run]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.artifacts.store import DTYPES as WIDTHS
from apps.base.errors import CrossfedError
from workflows.console.command import (
    EXIT_CODES,
    FAILED,
    carry_out,
    complain,
    leave,
    log_to,
    positive,
    say,
    stop_in_order,
)
from workflows.console.options import add_campaign_options, positive_number
from workflows.console.paths import short
from workflows.console.units import plural, seconds_text
from workflows.studies.transfers import savings
from workflows.studies.transfers.line import lines_of
from workflows.studies.transfers.models import DEFAULT, PRECISIONS, SOURCES
from workflows.studies.transfers.rows import TransferRow, read_rows
from workflows.studies.transfers.table import add, line_table, rate_text, repair, speed_table

if TYPE_CHECKING:
    from workflows.records.run_directory import RunDirectory
    from workflows.studies.transfers.study import TransferStudy

DTYPES = ("float32", "float16", "bfloat16", "int8")
TABLE = "transfers.csv"
PICTURES = ("sizes.png", "speed.png", "mean_speed.png", "savings.png")
EPILOG = f"""Each file is sent to a site and fetched back by the code that campaigns use there (its carrier): by Globus
Transfer, or copied if this machine sees the site's storage. What is fetched is verified, and deleted at both ends.
Transfers that are in the table already are not repeated.

{EXIT_CODES}"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="transfer_study.py",
        description=f"Measure transfer speed against model size at the sites of a campaign. Writes {TABLE}, "
        f"{', '.join(PICTURES)}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_campaign_options(parser)
    parser.add_argument(
        "--models",
        type=names,
        default=DEFAULT,
        metavar="A,B,...",
        help=f"of {', '.join(SOURCES)}; or NAME=PARAMETERS (default: {','.join(DEFAULT)})",
    )
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="round trips of each file (default: 3)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the files (default: bfloat16)")
    parser.add_argument(
        "--budget-gb",
        type=positive_number,
        default=20.0,
        metavar="N",
        help="limit of the GB that move in all, both ways (default: 20)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/CAMPAIGN-transfers")
    parser.add_argument("--dry-run", action="store_true", help="show what would move, and move nothing")
    return parser.parse_args(arguments)


def names(text: str) -> tuple[str, ...]:
    """Parse names with commas, for argparse."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    stop_in_order()
    return carry_out(lambda: study(options))


def study(options: argparse.Namespace) -> None:
    """Plan the round trips, make the missing ones, and show the results.

    Raises:
        UserMistake: nothing can be measured as requested, or more would move than the budget allows.
        CrossfedError: trips failed; the results of the others are kept.
    """
    from workflows.studies.transfers.points import check_budget, check_room, traffic
    from workflows.studies.transfers.study import open_run, prepare

    plan = prepare(options)
    if len(plan.trips) < plan.planned:
        there = f"{plan.planned - len(plan.trips)} of {plural(plan.planned, 'trip is', 'trips are')}"
        say(f"{there} in {short(plan.table)} already")
    for line in traffic(plan.trips, plan.folder):
        say(line)
    check_budget(plan.trips, plan.folder, options.budget_gb)
    check_room(plan.trips, plan.folder)
    if options.dry_run:
        return
    made = 0
    if plan.trips:
        run = open_run(plan, options)
        try:
            made = move_all(plan, run, options.dtype)
        finally:
            run.close()
    show(plan, options.dtype)
    if made < len(plan.trips):
        missing = f"{len(plan.trips) - made} of {plural(len(plan.trips), 'trip is', 'trips are')} missing"
        raise CrossfedError(missing, remedy="Correct the failures and run the command again: the table is kept")


def move_all(plan: TransferStudy, run: RunDirectory, dtype: str) -> int:
    """Make the round trips, add their rows to the table, and return the number of successful ones."""
    from workflows.studies.transfers.measure import measure_all, stores_in
    from workflows.studies.transfers.progress import Meter
    from workflows.studies.transfers.study import carriers_to

    log_to(plan.folder / "logs" / "driver.log", verbose=False)
    repair(plan.table)
    made, stores = 0, stores_in(plan.folder)
    with Meter() as meter:
        carriers = carriers_to(plan, run, stores, meter.show_trouble)
        for carrier in carriers.values():
            carrier.clean_up()
        for measured in measure_all(plan.trips, carriers, stores, dtype, meter.show):
            if measured.rows:
                add(plan.table, measured.rows)
                made += 1
                say(f"{measured.trip.name}: {rows_text(measured.rows)}")
            if measured.failure:
                complain(f"{measured.trip.name}: {measured.failure}. The site is left out from here on", FAILED)
    return made


def rows_text(rows: Sequence[TransferRow]) -> str:
    """Return the rows of a round trip in a line."""
    from workflows.studies.transfers.figures import WAY_NAMES

    parts = []
    for row in rows:
        waited = f", after {seconds_text(row.queued_s)} in the queue" if row.queued_s >= 1 else ""
        faults = f", {plural(row.faults, 'fault')}" if row.faults else ""
        took = f"{WAY_NAMES[row.direction]} {seconds_text(row.seconds)}, {rate_text(row.rate_mb_s)}"
        parts.append(f"{took}{waited}{faults}")
    return "; ".join(parts)


def show(plan: TransferStudy, dtype: str) -> None:
    """Print the tables and draw the figures of all rows of the table."""
    from rich.console import Console

    from workflows.reporting.figure_style import save
    from workflows.studies.transfers import figures

    rows = read_rows(plan.table)
    if not rows:
        return
    lines, console = lines_of(rows), Console(highlight=False)
    largest = max(plan.models.values(), key=lambda model: (bool(model.source), model.parameters))
    ways = savings.savings(largest, lines)
    for table in (speed_table(rows), line_table(lines), savings.as_table(largest, ways)):
        console.print(table)
    paintings: dict[str, tuple[Any, ...]] = {
        "sizes.png": (figures.sizes_figure, rows, WIDTHS[PRECISIONS[dtype]][1]),
        "speed.png": (figures.speed_figure, rows, lines),
        "mean_speed.png": (figures.mean_figure, rows),
        "savings.png": (figures.savings_figure, largest.name, ways),
    }
    for name, painting in paintings.items():
        save(plan.folder / name, *painting)
    say(f"Written to {short(plan.folder)}: {TABLE}, {', '.join(paintings)}")


if __name__ == "__main__":
    leave(main)

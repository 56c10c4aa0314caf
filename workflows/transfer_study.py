"""How fast models travel to the sites of a campaign and back, measured with files of their size.

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

from workflows.console.command import EXIT_CODES, FAILED, carry_out, positive, say, stop_in_order
from workflows.console.options import add_campaign_options
from workflows.console.units import plural

if TYPE_CHECKING:
    from workflows.records.run_directory import RunDirectory
    from workflows.studies.transfers.rows import TransferRow
    from workflows.studies.transfers.study import TransferStudy

DTYPES = ("float32", "float16", "bfloat16", "int8")
TABLE = "transfers.csv"
PICTURES = ("sizes.png", "speed.png", "mean_speed.png", "savings.png")
WORDS = f"""Each file is sent to a site and brought back, the way that campaigns use there (its carrier): by Globus
Transfer, or copied where this machine sees the site's storage. What has come back is verified, and deleted at both
ends. What the table has already is not moved again.

{EXIT_CODES}"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    from workflows.studies.transfers.models import DEFAULT, SOURCES

    parser = argparse.ArgumentParser(
        prog="transfer_study.py",
        description=f"Measure transfer speed against model size at the sites of a campaign. Writes {TABLE}, "
        f"{', '.join(PICTURES)}.",
        epilog=WORDS,
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
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="trips of each file (default: 3)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the files (default: bfloat16)")
    parser.add_argument(
        "--budget-gb",
        type=positive_number,
        default=20.0,
        metavar="N",
        help="as many GB may move in all, there and back (default: 20)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/CAMPAIGN-transfers")
    parser.add_argument("--dry-run", action="store_true", help="say what would move, and move nothing")
    return parser.parse_args(arguments)


def names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def positive_number(text: str) -> float:
    """A number above zero, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    stop_in_order()
    return carry_out(lambda: study(options))


def study(options: argparse.Namespace) -> None:
    """Plan the trips, make those that are missing, show.

    Raises:
        UserMistake: nothing can be measured as asked, or more would move than was agreed to.
        CrossfedError: trips failed; what the others have told is kept.
    """
    from apps.base.errors import CrossfedError
    from workflows.console.paths import short
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
        raise CrossfedError(missing, remedy="Mend what failed and ask again: what is in the table is kept")


def move_all(plan: TransferStudy, run: RunDirectory, dtype: str) -> int:
    """Make the trips and add their rows to the table; how many there were."""
    from workflows.console.command import complain, log_to
    from workflows.studies.transfers.measure import measure_all, stores_in
    from workflows.studies.transfers.progress import Meter
    from workflows.studies.transfers.study import ways_to
    from workflows.studies.transfers.table import add, mend

    log_to(plan.folder / "logs" / "driver.log", verbose=False)
    mend(plan.table)
    made, stores = 0, stores_in(plan.folder)
    with Meter() as meter:
        ways = ways_to(plan, run, stores, meter.trouble)
        for way in ways.values():
            way.tidy()
        for measured in measure_all(plan.trips, ways, stores, dtype, meter.show):
            if measured.rows:
                add(plan.table, measured.rows)
                made += 1
                say(f"{measured.trip.words}: {rows_text(measured.rows)}")
            if measured.failure:
                complain(f"{measured.trip.words}: {measured.failure}. The site is left out from here on", FAILED)
    return made


def rows_text(rows: Sequence[TransferRow]) -> str:
    """A trip's rows in a line."""
    from workflows.console.units import seconds_text
    from workflows.studies.transfers.figures import WAY_NAMES
    from workflows.studies.transfers.table import rate_text

    parts = []
    for row in rows:
        waited = f", after {seconds_text(row.queued_s)} in the queue" if row.queued_s >= 1 else ""
        faults = f", {plural(row.faults, 'fault')}" if row.faults else ""
        took = f"{WAY_NAMES[row.direction]} {seconds_text(row.seconds)}, {rate_text(row.rate_mb_s)}"
        parts.append(f"{took}{waited}{faults}")
    return "; ".join(parts)


def show(plan: TransferStudy, dtype: str) -> None:
    """Tables on the terminal and pictures in the study's folder, of all that is in the table."""
    from rich.console import Console

    from apps.artifacts.store import DTYPES as WIDTHS
    from workflows.console.paths import short
    from workflows.reporting.figure_style import save
    from workflows.studies.transfers import figures, savings
    from workflows.studies.transfers.line import lines_of
    from workflows.studies.transfers.models import PRECISIONS
    from workflows.studies.transfers.rows import read_rows
    from workflows.studies.transfers.table import line_table, speed_table

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
    from workflows.console.command import leave

    leave(main())

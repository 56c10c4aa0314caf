"""Study how long jobs wait: figures and a table of waits by nodes, walltime and queue, from existing records.

python workflows/queue_study.py [--from history|sacct|FILE...] [--out DIR] [--queue Q] [--since DATE]
python workflows/queue_study.py --probe SITE=CONFIG... [--probes N] [--probe-nodes 1,2] [--probe-walltimes 10m,1h]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.files import write_text
from site_configs.library.queues import parse_walltime
from workflows.console.command import EXIT_CODES, carry_out, leave, positive, say
from workflows.console.units import plural, seconds_text
from workflows.studies.queues.sources import read_sources
from workflows.studies.queues.table import as_csv, as_table, quantile, summarise
from workflows.studies.queues.waits import NEVER_STARTED, Reading, select

if TYPE_CHECKING:
    from pandas import DataFrame


TABLE_ROWS = 60  # that the terminal shows
EPILOG = """Sources (--from):
  history    the batch jobs of your own campaigns and probes: $CROSSFED_HISTORY, else
             ~/.local/share/crossfed/queue_history.csv
  sacct      Slurm's accounting on this machine, for the last 90 days or since --since
  FILE       the saved output of 'sacct -P -X -a --format=...', the accounting log of a PBS server,
             a trace in the Standard Workload Format, each also as .gz; or another history

Examples:
  python workflows/queue_study.py --from sacct --since 30d
  python workflows/queue_study.py --from theta_2022.swf.gz --out theta
  python workflows/queue_study.py --probe polaris=polaris --set account=mine --set queue=debug

"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="queue_study.py",
        description="Study how long jobs wait. Writes waits.csv, wait_by_nodes.png and wait_by_walltime.png.",
        epilog=EPILOG + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", nargs="+", default=["history"], dest="sources", metavar="SOURCE", help="history, sacct, or FILEs"
    )
    parser.add_argument("--out", type=Path, default=Path("queue_study"), metavar="DIR", help="default: queue_study")
    parser.add_argument("--queue", action="append", default=[], metavar="Q", help="of this queue only; repeatable")
    parser.add_argument("--since", type=moment, metavar="DATE", help="submitted from then on: 2026-08-01, or 30d ago")
    parser.add_argument("--until", type=moment, metavar="DATE", help="submitted before")
    parser.add_argument(
        "--processors-per-node", type=positive, metavar="N", help="of traces in SWF without it in their header"
    )
    add_probe_options(parser)
    return parser.parse_args(arguments)


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of probes."""
    probe = parser.add_argument_group("probes", "submit tiny jobs, record their waits, then study the history")
    probe.add_argument(
        "--probe", nargs="+", default=[], metavar="SITE=CONFIG", help="sites to probe; or just CONFIG or FILE.py"
    )
    probe.add_argument(
        "--probes", type=positive, metavar="N", help="jobs at each site (default: one of each shape); 20 in all at most"
    )
    probe.add_argument("--probe-nodes", type=counts, default=[1], metavar="1,2", help="nodes of a job (default: 1)")
    probe.add_argument(
        "--probe-walltimes", type=durations, default=[600], metavar="10m,1h", help="walltimes (default: 10m)"
    )
    probe.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="a setting of the site: account=mine; SITE.KEY=VALUE for one of several",
    )
    probe.add_argument(
        "--timeout", type=duration, default=3600, metavar="1h", help="jobs that wait longer are cancelled (default: 1h)"
    )
    probe.add_argument("--yes", action="store_true", help="submit without asking")


def moment(text: str) -> float:
    """Parse a date, a local date and time, or a number of days ago as in ``30d``; return UNIX seconds."""
    if text.endswith("d") and text[:-1].isdecimal():
        return (datetime.now() - timedelta(days=int(text[:-1]))).timestamp()
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-08-01, or 30d") from None


def duration(text: str) -> int:
    """Parse ``90s``, ``10m``, ``1h`` or ``01:30:00`` into seconds, for argparse."""
    try:
        return parse_walltime(text)
    except ValueError:
        message = f"{text!r} is not a length of time such as 90s, 10m, 1h or 01:30:00"
        raise argparse.ArgumentTypeError(message) from None


def durations(text: str) -> list[int]:
    """Parse durations with commas, for argparse."""
    return [duration(part.strip()) for part in text.split(",")]


def counts(text: str) -> list[int]:
    """Parse whole numbers from 1 on with commas, for argparse."""
    return [positive(part.strip()) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    return carry_out(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Submit probes if requested, then study the records."""
    started = True
    if options.probe:
        from workflows.studies.queues.probe import probe  # imports pydantic: --help answers without it

        started = probe(options)
    if started or options.sources != ["history"]:
        study(options)


def study(options: argparse.Namespace) -> None:
    """Read the records, write the table and the figures, and print the limits of the numbers.

    Raises:
        UserMistake: no records, or an unknown source.
    """
    from workflows.reporting.figure_style import save
    from workflows.studies.queues.figures import NODES, WALLTIME, wait_figure

    readings = read_sources(options.sources, options.since, options.processors_per_node)
    waits = select(readings, options.queue, options.since, options.until)
    summary = summarise(waits)
    write_text(options.out / "waits.csv", as_csv(summary))
    pictures = {"wait_by_nodes.png": NODES, "wait_by_walltime.png": WALLTIME}
    for name, axis in pictures.items():
        save(options.out / name, wait_figure, waits, axis)
    show(summary)
    for line in remarks(readings, waits):
        say(line)
    say(f"Written: {', '.join(str(options.out / name) for name in ('waits.csv', *pictures))}")


def show(summary: DataFrame) -> None:
    """Print the first rows of the table."""
    from rich.console import Console

    Console(highlight=False).print(as_table(summary.head(TABLE_ROWS)))
    if len(summary) > TABLE_ROWS:
        say(f"The first {TABLE_ROWS} of {len(summary)} rows; all are in waits.csv.")


def remarks(readings: Sequence[Reading], waits: DataFrame) -> list[str]:
    """Return lines on the numbers of jobs, the period, and the jobs that are left out."""
    from workflows.studies.queues.figures import PANELS

    first, last = (datetime.fromtimestamp(edge).date() for edge in (waits["submitted"].min(), waits["submitted"].max()))
    middle, tail = (quantile(waits["wait_s"], share) for share in (0.5, 0.9))
    summary = f"median wait {seconds_text(middle)}" + ("" if math.isnan(tail) else f", p90 {seconds_text(tail)}")
    lines = [f"{plural(len(waits), 'job')} submitted from {first} to {last}: {summary}."]
    for reading in readings:
        missing = [f"{count:,} {reason}" for reason, count in reading.left_out.items()]
        lines += [f"Left out of {reading.name}: {', '.join(missing)}."] if missing else []
        lines += [f"{reading.name}: {remark}." for remark in reading.remarks]
    if any(NEVER_STARTED in reading.left_out for reading in readings):
        lines.append("Jobs that never started are not in the numbers; with them the waits would be longer.")
    queues = waits.groupby(["machine", "queue"]).ngroups
    lines += [f"The pictures show the {PANELS} queues with the most jobs of {queues}."] if queues > PANELS else []
    return lines


if __name__ == "__main__":
    leave(main)

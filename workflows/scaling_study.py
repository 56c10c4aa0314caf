"""Measure training throughput against nodes and devices at the sites of a campaign.

python workflows/scaling_study.py [CAMPAIGN.yaml] [--sites A,B,...] [--nodes 1,2,4] [--ranks 1,2] [--micro-batch N]
                                  [--steps 10] [--repeats 3] [--name NAME] [--set KEY=VALUE]... [--dry-run]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from workflows.console.command import EXIT_CODES, carry_out, positive, say, stop_in_order
from workflows.console.options import add_campaign_options
from workflows.console.units import plural

if TYPE_CHECKING:
    from workflows.planning.campaign import Campaign
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory
    from workflows.studies.scaling.points import ScalingPoint
    from workflows.studies.scaling.table import ScalingRow


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="scaling_study.py",
        description="Measure training throughput at the sites of a campaign against nodes and devices, each with the "
        "sharding that the memory planner chose. Writes runs/NAME/scaling.csv and scaling.png; points in that table "
        "are not measured again.",
        epilog=EXIT_CODES,
    )
    add_campaign_options(parser)
    parser.add_argument("--nodes", type=numbers, default=(1, 2, 4), metavar="1,2,4", help="of batch sites")
    parser.add_argument("--ranks", type=numbers, default=(1,), metavar="1,2", help="of sites on this machine")
    parser.add_argument(
        "--micro-batch",
        type=positive,
        metavar="N",
        help="samples of a device in one pass (default: training.batch_size)",
    )
    parser.add_argument("--steps", type=positive, default=10, help="of a repeat (default: 10)")
    parser.add_argument("--repeats", type=positive, default=3, help="of each point (default: 3)")
    parser.add_argument("--name", help="files go to runs/NAME (default: the campaign's name and -scaling)")
    parser.add_argument("--dry-run", action="store_true", help="show the points and their plans, and measure nothing")
    return parser.parse_args(arguments)


def numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers from 1 on with commas, for argparse."""
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    stop_in_order()
    return carry_out(lambda: study(options))


def study(options: argparse.Namespace) -> None:
    """Plan the points, measure the missing ones, and draw the figure.

    Raises:
        UserMistake: nothing can be measured as requested.
        CrossfedError: some points could not be measured; the others are kept.
    """
    from apps.base.errors import CrossfedError
    from workflows.console.command import log_to
    from workflows.console.paths import short
    from workflows.studies.scaling.table import read_rows

    campaign, plan, folder, points = prepared(options)
    if options.dry_run:
        return
    with_rows = {row.key for row in read_rows(folder / "scaling.csv")}
    missing = [point for point in points if point.key not in with_rows]
    if len(missing) < len(points):
        there = f"{len(points) - len(missing)} of {plural(len(points), 'point is', 'points are')}"
        say(f"{there} in {short(folder / 'scaling.csv')} already")
    failures = []
    if missing:
        run = opened(folder, campaign, options)
        log_to(folder / "logs" / "driver.log", verbose=False)
        try:
            failures = measure_all(plan, run, missing, options)
        finally:
            run.close()
    draw(folder)
    if failures:
        raise CrossfedError(
            f"{len(failures)} of {plural(len(missing), 'point')} could not be measured", remedy="Run the command again"
        )


def prepared(options: argparse.Namespace) -> tuple[Campaign, Plan, Path, list[ScalingPoint]]:
    """Return the checked campaign, its plan, the study's folder and the points; print the points that do not fit."""
    from apps.base.errors import UserMistake
    from workflows.checks.here import require_all
    from workflows.planning.campaign_file import load_campaign
    from workflows.planning.memory.campaign import describe_site, training_setup
    from workflows.planning.memory.model import shape_of
    from workflows.planning.plan import make_plan, model_spec
    from workflows.records.run_directory import RUNS
    from workflows.studies.scaling.points import Sizes, points_of

    campaign = load_campaign(options.campaign, options.sets, options.sites)
    folder = (RUNS / (options.name or f"{campaign.name}-scaling")).resolve()
    plan = make_plan(campaign, folder, options.campaign)
    if not options.dry_run:
        require_all(plan, options.campaign)
    sizes = Sizes(options.nodes, options.ranks, options.micro_batch or campaign.training.batch_size)
    shape = shape_of(model_spec(campaign))
    points, refused = points_of(campaign, folder, shape, sizes)
    for line in refused:
        say(f"left out: {line}")
    if not points:
        raise UserMistake("nothing is left to be measured")
    for point in points:
        for key, text in describe_site(point.site, point.memory, shape, training_setup(campaign)):
            say(f"{key + ':' * bool(key):20s} {text}")
    return campaign, plan, folder, points


def opened(folder: Path, campaign: Campaign, options: argparse.Namespace) -> RunDirectory:
    """Open the study's directory, new or existing.

    Raises:
        UserMistake: it is in use, or was started with another campaign: their rows cannot be compared.
    """
    from apps.base.errors import UserMistake
    from workflows.planning.campaign_file import as_plain, differences
    from workflows.records.run_directory import open_new

    run = open_new(folder, campaign, options.campaign, options.sets, options.sites)
    old, new = run.opened["campaign"], as_plain(campaign)
    old, new = ({k: v for k, v in c.items() if k not in ("sites", "rounds")} for c in (old, new))
    changed = differences(old, new)
    if changed:
        run.close()
        key, (before, after) = next(iter(changed.items()))
        raise UserMistake(f"{folder} was started with {key}: {before}, not {after}", remedy="Choose another --name")
    return run


def measure_all(
    plan: Plan, run: RunDirectory, points: Sequence[ScalingPoint], options: argparse.Namespace
) -> list[str]:
    """Measure the points, save each row as soon as it is measured, and return the reasons of failures."""
    from rich.console import Console

    from workflows.console.command import complain
    from workflows.studies.scaling.measure import Effort, measure_wave
    from workflows.studies.scaling.points import waves

    effort, failures = Effort(options.steps, options.repeats), []
    with Console(stderr=True).status("starting") as status:
        for wave in waves(points):
            for measured in measure_wave(plan, run, wave, effort, status.update):
                if measured.row is None:
                    failures.append(measured.failure)
                    complain(f"{measured.point.name}: {measured.failure}", 1)
                else:
                    keep(run.path, measured.row)
    return failures


def keep(folder: Path, row: ScalingRow) -> None:
    """Add a row to the table and print it."""
    from workflows.studies.scaling.table import read_rows, write_rows

    path = folder / "scaling.csv"
    write_rows(path, [old for old in read_rows(path) if old.key != row.key] + [row])
    say(
        f"{row.site}: {row.nodes} x {plural(row.devices // row.nodes, 'device')}, {row.sharding}: "
        f"{row.samples_per_s:.3g} samples/s ({row.low:.3g} to {row.high:.3g}), {row.tokens_per_s:,.0f} tokens/s"
    )


def draw(folder: Path) -> None:
    """Draw the figure of the table."""
    from workflows.console.paths import short
    from workflows.reporting.figure_style import save
    from workflows.studies.scaling.figure import scaling_figure
    from workflows.studies.scaling.table import read_rows

    rows = read_rows(folder / "scaling.csv")
    if rows:
        save(folder / "scaling.png", scaling_figure, rows)
        say(f"The table is {short(folder / 'scaling.csv')}, the picture {short(folder / 'scaling.png')}")


if __name__ == "__main__":
    from workflows.console.command import leave

    leave(main)

"""The figures of a queue study: wait against nodes, and against walltime, a panel for each queue.

They follow Figures 5 and 6 of arXiv 2603.19544, with quantiles instead of standard deviations: waits span four
orders of magnitude, and a mean less its deviation is often below zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.console.units import DAY_S, HOUR_S
from workflows.reporting.figure_style import SITE_COLOURS, new_figure
from workflows.studies.queues.table import UNKNOWN, node_bins, node_label, walltime_bins, walltime_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

FEW = 10  # a bin with fewer jobs shows each of them instead of a box
PANELS = 8  # most queues in a figure, those with the most jobs
MARKS = ((10.0, "10 s"), (60.0, "1 min"), (HOUR_S, "1 hour"), (DAY_S, "1 day"), (7 * DAY_S, "1 week"))
BOX_LABEL, WHISKER_LABEL, MEDIAN_LABEL = "middle half of the jobs", "10 % to 90 % of the jobs", "median"
MEAN_LABEL, JOB_LABEL = "mean", f"one job (bins of fewer than {FEW})"


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a figure: the bins of the jobs and their labels."""

    column: str
    title: str
    bins: Callable[[Series], Series]
    label: Callable[[int], str]


NODES = Axis("nodes", "nodes of a job (below: jobs in the bin)", node_bins, node_label)
WALLTIME = Axis("walltime_s", "walltime asked for (below: jobs in the bin)", walltime_bins, walltime_label)


def shown_queues(waits: DataFrame) -> list[tuple[str, str]]:
    """Return machine and queue of each panel: those with the most jobs, in the order of their names."""
    counts = waits.groupby(["machine", "queue"]).size().sort_values(ascending=False, kind="stable")
    return sorted(counts.index[:PANELS])


def wait_figure(waits: DataFrame, axis: Axis) -> Figure:
    """Draw waits against nodes or walltime.

    Args:
        waits: the columns of ``waits.Wait``.
        axis: NODES or WALLTIME.
    """
    queues = shown_queues(waits)
    waits = waits.assign(bin=axis.bins(waits[axis.column]))
    panels = [waits[(waits["machine"] == machine) & (waits["queue"] == queue)] for machine, queue in queues]
    places = _places([int(number) for panel in panels for number in panel["bin"].unique()])
    columns = 1 if len(panels) == 1 or len(places) > 7 else 2
    rows = math.ceil(len(panels) / columns)
    width = max(6.0, 1.15 * len(places) + 1.8)
    grid = {"nrows": rows, "ncols": columns, "sharey": True, "squeeze": False}
    figure, all_axes = new_figure(columns * width, max(5.6, 3.6 * rows + 1.4), **grid)
    floor_s = 60.0 if waits["wait_s"].max() > HOUR_S else 1.0
    for number, axes in enumerate(all_axes.flat):
        axes.set_visible(number < len(panels))
        if number < len(panels):
            _panel(axes, panels[number], places, axis, SITE_COLOURS[number % len(SITE_COLOURS)], floor_s)
            axes.set_title(_title(*queues[number], panels[number]), loc="left")
    _wait_axis(all_axes.flat[0], floor_s)
    figure.supylabel("wait in hours, log scale")
    figure.supxlabel(axis.title)
    _legend(figure, waits)
    return figure


def _places(numbers: Sequence[int]) -> dict[int, int]:
    """Return the position of each bin: no gaps between the first and the last, the unknown one at the end."""
    known = [number for number in numbers if number != UNKNOWN]
    order = [*range(min(known), max(known) + 1)] if known else []
    order += [UNKNOWN] if UNKNOWN in numbers else []
    return {number: place for place, number in enumerate(order)}


def _title(machine: str, queue: str, jobs: DataFrame) -> str:
    noun = "job" if len(jobs) == 1 else "jobs"
    return f"{machine}, {'all queues' if queue == 'all' else f'queue {queue}'}: {len(jobs):,} {noun}"


def _panel(axes: Axes, jobs: DataFrame, places: dict[int, int], axis: Axis, colour: str, floor_s: float) -> None:
    labels = {place: f"{axis.label(number)}\n–" for number, place in places.items()}
    for number, group in jobs.groupby("bin"):
        place = places[int(number)]
        labels[place] = f"{axis.label(int(number))}\n{len(group):,}"
        hours = group["wait_s"].clip(lower=floor_s) / HOUR_S
        if len(group) < FEW:
            _single_jobs(axes, hours, place, colour)
        else:
            _box(axes, hours, group["wait_s"].mean() / HOUR_S, place, colour)
    axes.set_xticks(list(labels), labels=list(labels.values()))
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.tick_params(labelleft=True)
    axes.grid(False, axis="x")


def _single_jobs(axes: Axes, hours: Series, place: int, colour: str) -> None:
    """Draw each job as a dot, side by side in the order of their waits, so that none hides another."""
    shifts = [0.06 * (rank - (len(hours) - 1) / 2) for rank in range(len(hours))]
    axes.plot([place + shift for shift in shifts], sorted(hours), "o", color=colour, markersize=6, zorder=4)


def _box(axes: Axes, hours: Series, mean_hours: float, place: int, colour: str) -> None:
    names = ("whislo", "q1", "med", "q3", "whishi")
    stats = dict(zip(names, hours.quantile([0.1, 0.25, 0.5, 0.75, 0.9]), strict=True))
    box = {"facecolor": _tint(colour), "edgecolor": colour}
    whisker = {"color": colour, "linewidth": 1.6}
    axes.bxp(
        [stats],
        positions=[place],
        widths=0.56,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        boxprops=box,
        whiskerprops=whisker,
        capprops=whisker,
        medianprops={"color": "#000000", "linewidth": 2.4},
    )
    axes.plot([place], [mean_hours], zorder=4, **_mean_style())


def _tint(colour: str) -> str:
    """Return the colour mixed with white: opaque, so that no line shows through a box."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = ((1 + part) / 2 for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _mean_style() -> dict[str, Any]:
    return {
        "marker": "D",
        "markersize": 6,
        "markerfacecolor": "#FFFFFF",
        "markeredgecolor": "#000000",
        "linestyle": "none",
    }


def _wait_axis(axes: Axes, floor_s: float) -> None:
    """Set a log axis in hours, with lines at common units of time; shorter waits are drawn at its lower end."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_yscale("log")
    floor, top = floor_s / HOUR_S, axes.get_ylim()[1]
    axes.set_ylim(floor / 1.25, top * 1.15)
    decades = [10.0**power for power in range(-4, 6)]
    room = [decade for decade in decades if 2 * floor < decade < 1.15 * top]
    axes.yaxis.set_major_locator(FixedLocator([floor, *room]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    at_floor = "≤1 min" if floor_s == 60.0 else "≤1 s"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: at_floor if abs(v / floor - 1) < 1e-6 else f"{v:g}"))
    for other in axes.get_shared_y_axes().get_siblings(axes):
        _marks(other, floor, 1.15 * top)


def _marks(axes: Any, floor: float, top: float) -> None:
    for seconds, text in MARKS:
        height = seconds / HOUR_S
        if 1.5 * floor < height < top:
            axes.axhline(height, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                text,
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                va="center",
                textcoords="offset points",
                fontsize=10.5,
                color="#555555",
                annotation_clip=False,
            )


def _legend(figure: Figure, waits: DataFrame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    counts = waits.groupby(["machine", "queue", "bin"]).size()
    grey = "#777777"
    handles: list[Any] = []
    if (counts >= FEW).any():
        handles += [
            Patch(facecolor=_tint(grey), edgecolor=grey, label=BOX_LABEL),
            Line2D([], [], color=grey, linewidth=1.6, label=WHISKER_LABEL),
            Line2D([], [], color="#000000", linewidth=2.4, label=MEDIAN_LABEL),
            Line2D([], [], label=MEAN_LABEL, **_mean_style()),
        ]
    if (counts < FEW).any():
        handles.append(Line2D([], [], marker="o", linestyle="none", color=grey, markersize=6, label=JOB_LABEL))
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if figure.get_figwidth() < 11 else len(handles))

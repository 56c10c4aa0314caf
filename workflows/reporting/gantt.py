"""Gantt chart of a campaign: phases of each site over time, and its batch jobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows.console.units import UNIT_NAMES, time_unit
from workflows.records.batch_jobs import LOST_ENDINGS, BatchJob
from workflows.records.timeline import PHASES, Timeline
from workflows.reporting.figure_style import (
    DOWN_COLOUR,
    JOB_COLOUR,
    JOB_QUEUE_LOOK,
    LOST_LOOK,
    PHASE_COLOURS,
    line_style,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def timeline_figure(timeline: Timeline, sites: Sequence[str]) -> Figure:
    """Draw a Gantt chart with one row per site and one each for the server and the evaluator.

    Under the row of a batch site a thin band shows its jobs: queued, running, and a mark where one was lost.
    """
    unit, size = time_unit(timeline.length_s)
    with_jobs = {job.site for job in timeline.jobs}
    figure, axes = new_figure(13, 1.9 + 0.52 * len(timeline.rows) + 0.14 * len(with_jobs))
    for start, end in timeline.down:
        axes.axvspan(start / size, end / size, color=DOWN_COLOUR, linewidth=0, zorder=0)
    for height, row in enumerate(timeline.rows):
        middle = height - (0.11 if row in with_jobs else 0.0)
        axes.barh(middle, timeline.length_s / size, height=0.06, color="#BBBBBB", zorder=1)
        for phase in PHASES:
            bars = [(i.start_s / size, i.length_s / size) for i in timeline.of(row, phase)]
            colour = PHASE_COLOURS[phase]
            thickness = 0.5 if row in with_jobs else 0.72
            axes.broken_barh(
                bars, (height - 0.36, thickness), facecolor=colour, edgecolor=colour, linewidth=0.4, zorder=3
            )
        _job_band(axes, [job for job in timeline.jobs if job.site == row], height + 0.2, size)
    axes.set_yticks(range(len(timeline.rows)), labels=list(timeline.rows))
    for label in axes.get_yticklabels():
        if label.get_text() in sites:
            label.set_color(line_style(label.get_text(), sites)["color"])
    axes.set_ylim(len(timeline.rows) - 0.4, -0.6)
    axes.set_xlim(0, max(timeline.length_s / size, 1e-3))
    axes.set_xlabel(f"{UNIT_NAMES[unit]} since the campaign was opened")
    axes.grid(False)
    _mark_rounds(axes, timeline, size)
    _phase_legend(figure, timeline)
    return figure


def _job_band(axes: Axes, jobs: Sequence[BatchJob], top: float, size: float) -> None:
    """Draw the batch jobs of one row as a band of height 0.16 below ``top``."""
    place = (top, 0.16)
    queued = [(job.submitted / size, job.waited_s / size) for job in jobs]
    axes.broken_barh(queued, place, **JOB_QUEUE_LOOK, linewidth=0.5, zorder=3)
    ran = [(job.started / size, job.ran_s / size) for job in jobs if job.started is not None]
    axes.broken_barh(ran, place, facecolor=JOB_COLOUR, edgecolor="#FFFFFF", linewidth=0.6, zorder=3)
    lost = [job.until / size for job in jobs if job.ending in LOST_ENDINGS]
    axes.plot(lost, [top + 0.08] * len(lost), **LOST_LOOK)


def _mark_rounds(axes: Axes, timeline: Timeline, size: float) -> None:
    """Draw a light line where each round begins, with its number where there is room."""
    last_label = -math.inf
    for number, start in timeline.round_starts.items():
        axes.axvline(start / size, color="#777777", linewidth=0.8, linestyle=(0, (2, 3)), zorder=4)
        if start - last_label > 0.03 * timeline.length_s:
            text = f"{timeline.period} {number}" if last_label == -math.inf else str(number)
            axes.annotate(
                text,
                (start / size, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, 3),
                textcoords="offset points",
                fontsize=11,
                color="#555555",
            )
            last_label = start + (0.05 * timeline.length_s if last_label == -math.inf else 0.0)


def _phase_legend(figure: Figure, timeline: Timeline) -> None:
    from matplotlib.patches import Patch

    seen = {interval.phase for interval in timeline.intervals}
    handles: list[Artist] = [
        Patch(color=PHASE_COLOURS[phase], label=timeline.label(phase)) for phase in PHASES if phase in seen
    ]
    handles.append(Patch(color="#BBBBBB", label="idle (thin line)"))
    handles += _job_handles(timeline)
    if timeline.down:
        handles.append(Patch(color=DOWN_COLOUR, label="driver down"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))


def _job_handles(timeline: Timeline) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = []
    if any(job.waited_s > 0 for job in timeline.jobs):
        handles.append(Patch(**JOB_QUEUE_LOOK, linewidth=0.5, label="batch job queued"))
    if any(job.ran_s > 0 for job in timeline.jobs):
        handles.append(Patch(color=JOB_COLOUR, label="batch job running"))
    if any(job.ending in LOST_ENDINGS for job in timeline.jobs):
        handles.append(Line2D([], [], label="batch job lost", **LOST_LOOK))
    return handles

"""Gantt chart of a campaign: phases of each site over time, and its batch jobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workflows.console.units import UNIT_NAMES, time_unit
from workflows.records.batch_jobs import LOST_ENDINGS, BatchJob
from workflows.records.spans import Span
from workflows.records.timeline import PHASES, SERVER_ROWS, WAITING, Timeline
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

FEW_ROWS, MOST_ROWS = 16, 40  # sites: beyond the first rows are lower, beyond the second some are left out
MOST_BARS = 500  # of a row; of more, the shares of their phases are drawn
SHARE_PARTS = 100  # of the time
FEW_ROUNDS = 24  # all are marked
LABEL_SHARE = 0.035  # of the width, that a round's number takes


def timeline_figure(timeline: Timeline, sites: Sequence[str]) -> Figure:
    """Draw a Gantt chart with one row per site and one each for the server and the evaluator.

    Under the row of a batch site a thin band shows its jobs: queued, running, and a mark where one was lost. If there
    are more intervals than can be told apart, a row shows which share of each moment its phases take. Of more sites
    than ``MOST_ROWS``, those are drawn that waited longest.
    """
    rows = drawn_rows(timeline)
    unit, size = time_unit(timeline.length_s)
    with_jobs = {job.site for job in timeline.jobs if job.site in rows}
    row_height = 0.52 if len(rows) <= FEW_ROWS else 0.3
    figure, axes = new_figure(13, 1.9 + row_height * len(rows) + 0.14 * len(with_jobs))
    for start, end in timeline.down:
        axes.axvspan(start / size, end / size, color=DOWN_COLOUR, linewidth=0, zorder=0)
    dense = is_dense(timeline)
    for height, row in enumerate(rows):
        thickness = 0.5 if row in with_jobs else 0.72
        middle = height - (0.11 if row in with_jobs else 0.0)
        axes.barh(middle, timeline.length_s / size, height=0.06, color="#BBBBBB", zorder=1)
        draw = _shares if dense else _bars
        draw(axes, timeline, row, (height - 0.36, thickness), size)
        _job_band(axes, [job for job in timeline.jobs if job.site == row], height + 0.2, size)
    axes.set_yticks(range(len(rows)), labels=rows, fontsize=13 if len(rows) <= FEW_ROWS else 10)
    for label in axes.get_yticklabels():
        if label.get_text() in sites:
            label.set_color(line_style(label.get_text(), sites)["color"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(timeline.length_s / size, 1e-3))
    axes.set_xlabel(f"{UNIT_NAMES[unit]} since the campaign was opened")
    axes.grid(False)
    _mark_rounds(axes, timeline, size)
    _phase_legend(figure, timeline)
    return figure


def drawn_rows(timeline: Timeline) -> list[str]:
    """Return the rows that are drawn: all, or the sites that waited longest and the server's."""
    servers = [row for row in timeline.rows if row in SERVER_ROWS]
    sites = [row for row in timeline.rows if row not in SERVER_ROWS]
    if len(sites) <= MOST_ROWS:
        return [*sites, *servers]
    waits = {site: timeline.seconds(site, WAITING) for site in sites}
    longest = sorted(sites, key=lambda site: -waits[site])[:MOST_ROWS]
    return [*(site for site in sites if site in longest), *servers]


def is_dense(timeline: Timeline) -> bool:
    """Return whether a row has more intervals than can be told apart in its width."""
    return max(map(len, timeline.by_row.values()), default=0) > MOST_BARS


def _bars(axes: Axes, timeline: Timeline, row: str, place: tuple[float, float], size: float) -> None:
    """Draw one bar for each interval of a row."""
    for phase in PHASES:
        bars = [(i.start_s / size, i.length_s / size) for i in timeline.of(row, phase)]
        colour = PHASE_COLOURS[phase]
        axes.broken_barh(bars, place, facecolor=colour, edgecolor=colour, linewidth=0.4, zorder=3)


def _shares(axes: Axes, timeline: Timeline, row: str, place: tuple[float, float], size: float) -> None:
    """Draw, for equal parts of the time, the share that each phase of a row takes of it, from the bottom up."""
    width_s = timeline.length_s / SHARE_PARTS
    edges = [part * width_s / size for part in range(SHARE_PARTS)]
    base = [place[0] + place[1]] * SHARE_PARTS
    for phase in PHASES:
        shares = shares_of([(i.start_s, i.end_s) for i in timeline.of(row, phase)], width_s, SHARE_PARTS)
        tops = [bottom - share * place[1] for bottom, share in zip(base, shares, strict=True)]
        tops = [max(top, place[0]) for top in tops]  # tasks of the server may run beside each other
        if any(shares):
            axes.fill_between(edges, base, tops, step="post", facecolor=PHASE_COLOURS[phase], linewidth=0, zorder=3)
        base = tops


def shares_of(spans: Sequence[Span], width_s: float, parts: int) -> list[float]:
    """Return which share of each of some equal parts of the time from 0 on lies in the spans."""
    shares = [0.0] * parts
    for start, end in spans:
        first, last = int(start // width_s), min(int(end // width_s), parts - 1)
        for part in range(first, last + 1):
            overlap = min(end, (part + 1) * width_s) - max(start, part * width_s)
            shares[part] += max(0.0, overlap) / width_s
    return shares


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
    """Draw a light line where a round begins, with its number: of every so-many-th round, so that all have room."""
    last = -math.inf
    apart = 0.0 if len(timeline.round_starts) <= FEW_ROUNDS else LABEL_SHARE * timeline.length_s
    last_label = -math.inf
    for number, start in timeline.round_starts.items():
        if start - last < apart:
            continue
        last = start
        axes.axvline(start / size, color="#777777", linewidth=0.8, linestyle=(0, (2, 3)), zorder=4)
        if start - last_label > LABEL_SHARE * timeline.length_s:
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

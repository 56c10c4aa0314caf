"""Figures of a campaign: losses of the models, moved bytes, time per phase.

Each function takes plain tables and returns a matplotlib Figure; `figure_style.save` writes it.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from workflows.console.units import UNIT_NAMES, bytes_text, time_unit, times_text
from workflows.records.event_log import Move
from workflows.records.timeline import BESIDE, EVALUATION, PHASES, Timeline, phase_seconds, round_lengths
from workflows.reporting.figure_style import (
    GLOBAL,
    HEAT_COLOURS,
    PHASE_COLOURS,
    line_style,
    new_figure,
    spread,
    whole_rounds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


def loss_figure(mean_losses: DataFrame, sites: Sequence[str], n_tasks: int, period: str = "round") -> Figure:
    """Draw the mean test loss of each model against the round or version.

    Args:
        mean_losses: one row per round or version, one column per model.
        sites: in the order of their colours.
        n_tasks: over which the mean is.
        period: what the rows count.
    """
    figure, axes = new_figure(12, 6.75)
    ends: list[tuple[str, float, float]] = []
    for model in reversed(mean_losses.columns):
        line = mean_losses[model].dropna()
        if len(line):
            axes.plot(line.index, line, marker="o", markersize=5, **line_style(model, sites))
            ends.append((model, float(line.index[-1]), float(line.iloc[-1])))
    whole_rounds(axes, int(mean_losses.index.max()))
    axes.set_xlabel(period)
    axes.set_ylabel(f"test loss, mean over {n_tasks} tasks" if n_tasks != 1 else "test loss")
    _label_ends(axes, ends, sites)
    return figure


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, float]], sites: Sequence[str]) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    right = axes.get_xlim()[1]
    heights = spread([end[2] for end in ends], 0.052 * (high - low), low, high)
    for (model, x, y), height in zip(ends, heights, strict=True):
        style = line_style(model, sites)
        leader = {"color": style["color"], "linewidth": 0.8, "alpha": 0.6, "clip_on": False}
        axes.plot([x, right], [y, height], **leader, zorder=2)
        axes.annotate(
            f"{model}  {y:.3f}",
            (right, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=style["color"],
            weight="bold" if model == GLOBAL else "normal",
            annotation_clip=False,
        )


def task_figure(
    losses: DataFrame, owners: Mapping[str, Sequence[str]], sites: Sequence[str], period: str = "round"
) -> Figure:
    """Draw the test loss of each task in a panel of its own.

    Args:
        losses: one row per round or version, columns (model, task).
        owners: the sites that train on each task.
        sites: in the order of their colours.
        period: what the rows count.
    """
    tasks = list(owners)
    columns = min(len(tasks), 4)
    rows = math.ceil(len(tasks) / columns)
    size = {"nrows": rows, "ncols": columns, "sharex": True, "squeeze": False}
    figure, grid = new_figure(max(7.0, 3.5 * columns), 2.6 * rows + 1.2, **size)
    panels = list(grid.flat)
    for task, axes in zip(tasks, panels, strict=False):
        _task_panel(axes, task, losses, owners[task], sites)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel(period)
    figure.supylabel("test loss")
    models = [model for model in (GLOBAL, *sites) if model in losses.columns.get_level_values(0)]
    _model_legend(figure, models, sites)
    return figure


def _task_panel(axes: Axes, task: str, losses: DataFrame, owners: Sequence[str], sites: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for model in (GLOBAL, *sites):
        if (model, task) not in losses.columns:
            continue
        line = losses[(model, task)].dropna()
        style = line_style(model, sites)
        if model not in (GLOBAL, *owners):
            style |= {"linewidth": 1.2, "linestyle": (0, (2, 1.5)), "alpha": 0.75, "zorder": 2}
        axes.plot(line.index, line, marker="o" if len(line) == 1 else None, **style)
    whole_rounds(axes, int(losses.index.max()))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelbottom=True)
    axes.set_title("\n".join(textwrap.wrap(task, 30)), loc="left", fontsize=12, pad=22)
    text, colour = _owner_mark(owners, sites)
    axes.annotate(
        text, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=11, color=colour
    )


def _owner_mark(owners: Sequence[str], sites: Sequence[str]) -> tuple[str, str]:
    if not owners:
        return "data at no site", "#555555"
    if len(owners) == 1:
        return f"data at {owners[0]}", line_style(owners[0], sites)["color"]
    return ("data at all sites" if len(owners) == len(sites) else f"data at {len(owners)} sites"), "#555555"


def _model_legend(figure: Figure, models: Sequence[str], sites: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=model, **line_style(model, sites)) for model in models]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(7, len(handles)))


def heatmap_figure(final: DataFrame, owners: Mapping[str, Sequence[str]]) -> Figure:
    """Draw the final loss by task and model; the colour compares with the global model, a frame marks an owner.

    Args:
        final: one row per task, one column per model, the global model first.
        owners: the sites that train on each task.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    values = final.to_numpy(dtype=float)
    figure, axes = new_figure(3.4 + 1.25 * values.shape[1], 1.6 + 0.42 * values.shape[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(values / values[:, [0]])
    colours = LinearSegmentedColormap.from_list("against global", HEAT_COLOURS)
    shown = axes.imshow(ratio, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        best = value == np.nanmin(values[row]) if np.isfinite(values[row]).any() else False
        axes.text(
            column,
            row,
            f"{value:.3f}" if np.isfinite(value) else "–",
            ha="center",
            va="center",
            weight="bold" if best else "normal",
            fontsize=12,
        )
        if final.columns[column] in owners[final.index[row]]:
            corner = (column - 0.47, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="#111111", linewidth=1.6))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    tilt = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if values.shape[1] > 7 else {}
    axes.set_xticks(range(values.shape[1]), labels=list(final.columns), **tilt)
    axes.set_yticks(range(values.shape[0]), labels=list(final.index))
    axes.xaxis.tick_top()
    bar = figure.colorbar(shown, ax=axes, ticks=[-1, 0, 1], pad=0.02, fraction=0.04)
    bar.ax.set_yticklabels(["≤ half", "same", "≥ double"])
    bar.set_label("loss against the global model")
    return figure


def cost_figure(moved: Sequence[Move], timeline: Timeline, full_nbytes: int | None, sites: Sequence[str]) -> Figure:
    """Draw bytes per round, stacked by site (left), and seconds per phase of each round (right).

    If the strategy has no rounds, bytes are shown over time: a version is made whenever an update arrives, and its
    transfers were earlier, or for several versions.
    """
    figure, (left, right) = new_figure(14, 6.4, ncols=2)
    if timeline.period == "round":
        _bytes_panel(left, moved, full_nbytes, sites, timeline.period)
    else:
        _bytes_over_time(left, moved, full_nbytes, sites, timeline)
    _seconds_panel(right, timeline)
    return figure


def _bytes_panel(axes: Axes, moved: Sequence[Move], full_nbytes: int | None, sites: Sequence[str], period: str) -> None:
    from matplotlib.ticker import FuncFormatter

    rounds = sorted({move.round for move in moved})
    base: dict[tuple[int, bool], float] = defaultdict(float)
    for site in sites:
        colour = line_style(site, sites)["color"]
        for out, shift in ((True, -0.2), (False, 0.2)):
            chosen = [move for move in moved if (move.site, move.out) == (site, out)]
            sums = [sum(move.nbytes for move in chosen if move.round == number) for number in rounds]
            look = {"color": colour, "edgecolor": "#FFFFFF", "linewidth": 0.6, "hatch": "" if out else "////"}
            bottoms = [base[number, out] for number in rounds]
            axes.bar([r + shift for r in rounds], sums, 0.38, bottoms, label=site if out else None, **look)
            for number, nbytes in zip(rounds, sums, strict=True):
                base[number, out] += nbytes
    title = f"bytes per {period}; plain: to the sites, hatched: back"
    if full_nbytes and moved:
        title += "\n" + _compare_with_full_model(axes, moved, full_nbytes, max(base.values()))
    axes.set_title(title, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    _finish_bars(axes, rounds, len(sites) <= 12, period)


def _bytes_over_time(
    axes: Axes, moved: Sequence[Move], full_nbytes: int | None, sites: Sequence[str], timeline: Timeline
) -> None:
    """Draw the bytes moved so far, one step line for each site and direction."""
    from matplotlib.ticker import FuncFormatter

    unit, size = time_unit(timeline.length_s)
    for site in sites:
        for out, width in ((True, 3.0), (False, 1.2)):
            own = sorted(
                (move.ended - timeline.origin, move.nbytes) for move in moved if (move.site, move.out) == (site, out)
            )
            times = [0.0, *(ended_s for ended_s, _ in own), timeline.length_s]
            sums = [0, *accumulate(nbytes for _, nbytes in own)]
            look = line_style(site, sites) | {"linewidth": width}
            axes.step(
                [time / size for time in times], [*sums, sums[-1]], where="post", label=site if out else None, **look
            )
    title = "bytes moved so far; thick: to the sites, thin: back"
    if full_nbytes and moved:
        times_more = times_text(full_nbytes * len(moved) / max(1, sum(move.nbytes for move in moved)))
        title += f"\nfull models instead: {bytes_text(full_nbytes * len(moved))}, {times_more}"
    axes.set_title(title, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.set_xlim(0, max(timeline.length_s / size, 1e-3))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{UNIT_NAMES[unit]} since the campaign was opened")
    _legend_below(axes, len(sites) <= 12)


def _compare_with_full_model(axes: Axes, moved: Sequence[Move], full_nbytes: int, highest: float) -> str:
    """Draw a line at the bytes of full models if it fits into the panel; return the text for the title."""
    per_round = full_nbytes * max(Counter((m.round, m.out) for m in moved).values())
    if per_round <= 4 * highest:
        axes.axhline(per_round, color="#000000", linewidth=1.4, linestyle="--", label="full model")
    times = full_nbytes * len(moved) / max(1, sum(move.nbytes for move in moved))
    return f"full model: {bytes_text(per_round)} each way, {times_text(times)}"


def _seconds_panel(axes: Axes, timeline: Timeline) -> None:
    phases, lengths = phase_seconds(timeline), round_lengths(timeline)
    unit, size = time_unit(max(lengths.values(), default=0.0))
    base = dict.fromkeys(phases, 0.0)
    for phase in (phase for phase in PHASES if phase not in BESIDE):
        heights = [phases[number].get(phase, 0.0) / size for number in phases]
        if any(heights):
            places = [number - 0.13 for number in phases]
            axes.bar(places, heights, 0.5, list(base.values()), color=PHASE_COLOURS[phase], label=timeline.label(phase))
            base = {number: base[number] + height for number, height in zip(phases, heights, strict=True)}
    beside = [sum(phases[number].get(phase, 0.0) for phase in BESIDE) / size for number in phases]
    axes.bar([number + 0.26 for number in phases], beside, 0.2, color=PHASE_COLOURS[EVALUATION], label="evaluation")
    for number, length in lengths.items():
        label = f"length of the {timeline.period}" if number == min(lengths) else "_nolegend_"
        axes.hlines(length / size, number - 0.42, number + 0.16, color="#D55E00", linewidth=2.2, label=label)
    title = f"time per {timeline.period}, mean over the sites\nevaluation runs beside the next {timeline.period}"
    axes.set_title(title, loc="left")
    axes.set_ylabel(UNIT_NAMES[unit])
    _finish_bars(axes, list(phases), True, timeline.period)


def _finish_bars(axes: Axes, rounds: Sequence[int], with_legend: bool, period: str) -> None:
    whole_rounds(axes, max(rounds, default=1), first=min(rounds, default=1))
    axes.set_xlim(min(rounds, default=1) - 0.6, max(rounds, default=1) + 0.6)
    axes.set_xlabel(period)
    axes.grid(False, axis="x")
    _legend_below(axes, with_legend)


def _legend_below(axes: Axes, with_legend: bool) -> None:
    if with_legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, columnspacing=1.2, handlelength=1.4)

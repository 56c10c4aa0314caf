"""Figures of the losses of a campaign: their mean, each task, and the last ones.

Each function takes plain tables and returns a matplotlib Figure; `figure_style.save` writes it. Where there are more
sites than lines that can be told apart, the range of the sites is drawn; where there are more tasks than panels, the
first ones.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflows.records.scores import GLOBAL
from workflows.reporting.figure_style import (
    HEAT_COLOURS,
    MOST_LINES,
    MOST_MARKS,
    line_style,
    new_figure,
    spread,
    whole_rounds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

MOST_PANELS = 24  # tasks with a panel each
MOST_HEAT_ROWS = 40  # tasks in the table of last losses
RANGE = "#BBBBBB"
LOW, MEDIAN, HIGH = "lowest site", "median site", "highest site"


def loss_figure(
    mean_losses: DataFrame,
    errors: DataFrame,
    sites: Sequence[str],
    n_tasks: int,
    *,
    period: str = "round",
    unit: str = "nats per token",
    uniform: float | None = None,
) -> Figure:
    """Draw the mean test loss of each model against the round or version.

    Args:
        mean_losses: one row per round or version, one column per model.
        errors: their standard errors; missing where they are not known.
        sites: in the order of their colours.
        n_tasks: over which the mean is.
        period: what the rows count.
        unit: of the losses.
        uniform: loss of a uniform guess; drawn where it lies among the others.
    """
    figure, axes = new_figure(12, 6.75)
    ends: list[tuple[str, float, float]] = []
    models = [model for model in mean_losses.columns if model != GLOBAL]
    if len(models) > MOST_LINES:
        ends += _draw_range(axes, mean_losses[models])
        models = []
    for model in [*reversed(models), *([GLOBAL] if GLOBAL in mean_losses else [])]:
        line = mean_losses[model].dropna()
        if len(line):
            _draw_line(axes, line, errors[model] if model == GLOBAL else None, line_style(model, sites))
            ends.append((model, float(line.index[-1]), float(line.iloc[-1])))
    whole_rounds(axes, int(mean_losses.index.max()))
    low, high = axes.get_ylim()
    if uniform is not None and low < uniform < high:
        axes.axhline(uniform, color="#777777", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            "uniform guess",
            (0, uniform),
            (4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#777777",
            fontsize=11,
        )
    axes.set_xlabel(period)
    axes.set_ylabel(f"test loss [{unit}]" + (f", mean over {n_tasks} tasks" if n_tasks != 1 else ""))
    _label_ends(axes, ends, sites)
    return figure


def _draw_line(axes: Axes, line: Series, errors: Series | None, style: Mapping[str, Any]) -> None:
    """Draw the loss of a model; its scored rounds are marked where there are few, a band is its standard error."""
    axes.plot(line.index, line, marker="o" if len(line) <= MOST_MARKS else None, markersize=5, **style)
    if errors is not None and errors.reindex(line.index).notna().any():
        band = errors.reindex(line.index).fillna(0.0)
        axes.fill_between(line.index, line - band, line + band, color=style["color"], alpha=0.15, linewidth=0, zorder=1)


def _draw_range(axes: Axes, losses: DataFrame) -> list[tuple[str, float, float]]:
    """Draw the range of the sites and their median; return the name and end of each of the three lines."""
    found = losses.dropna(how="all")
    if not len(found):
        return []
    low, median, high = found.min(axis=1), found.median(axis=1), found.max(axis=1)
    axes.fill_between(found.index, low, high, color=RANGE, alpha=0.5, linewidth=0, zorder=1)
    axes.plot(found.index, median, color="#777777", linewidth=1.6, zorder=2)
    last = float(found.index[-1])
    return [(name, last, float(line.iloc[-1])) for name, line in ((LOW, low), (MEDIAN, median), (HIGH, high))]


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, float]], sites: Sequence[str]) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    right = axes.get_xlim()[1]
    heights = spread([end[2] for end in ends], 0.052 * (high - low), low, high)
    for (model, x, y), height in zip(ends, heights, strict=True):
        colour = "#555555" if model in (LOW, MEDIAN, HIGH) else line_style(model, sites)["color"]
        leader: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.6, "clip_on": False}
        axes.plot([x, right], [y, height], **leader, zorder=2)
        axes.annotate(
            f"{model}  {y:.3f}",
            (right, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold" if model == GLOBAL else "normal",
            annotation_clip=False,
        )


def task_figure(
    losses: DataFrame,
    errors: DataFrame,
    owners: Mapping[str, Sequence[str]],
    sites: Sequence[str],
    *,
    period: str = "round",
    unit: str = "nats per token",
) -> Figure:
    """Draw the test loss of each task in a panel of its own, of at most ``MOST_PANELS`` tasks.

    Args:
        losses: one row per round or version, columns (model, task).
        errors: their standard errors.
        owners: the sites that train on each task.
        sites: in the order of their colours.
        period: what the rows count.
        unit: of the losses.
    """
    tasks = list(owners)[:MOST_PANELS]
    columns = min(len(tasks), 4)
    rows = math.ceil(len(tasks) / columns)
    size = {"nrows": rows, "ncols": columns, "sharex": True, "squeeze": False}
    figure, grid = new_figure(max(7.0, 3.5 * columns), 2.6 * rows + 1.2, **size)
    panels = list(grid.flat)
    for task, axes in zip(tasks, panels, strict=False):
        _task_panel(axes, task, losses, errors, owners[task], sites)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel(period)
    figure.supylabel(f"test loss [{unit}]")
    models = [model for model in (GLOBAL, *sites) if model in losses.columns.get_level_values(0)]
    _model_legend(figure, models, sites)
    return figure


def _task_panel(
    axes: Axes, task: str, losses: DataFrame, errors: DataFrame, owners: Sequence[str], sites: Sequence[str]
) -> None:
    from matplotlib.ticker import MaxNLocator

    own = owners if len(owners) <= MOST_LINES else []
    many = len(sites) > MOST_LINES
    others = [site for site in sites if site not in own and (site, task) in losses.columns]
    if many and others:
        found = losses[[(site, task) for site in others]].dropna(how="all")
        low, high = found.min(axis=1), found.max(axis=1)
        axes.fill_between(found.index, low, high, color=RANGE, alpha=0.5, linewidth=0)
    for model in (GLOBAL, *(own if many else sites)):
        if (model, task) not in losses.columns:
            continue
        line = losses[(model, task)].dropna()
        style = line_style(model, sites)
        if model not in (GLOBAL, *own):
            style |= {"linewidth": 1.2, "linestyle": (0, (2, 1.5)), "alpha": 0.75, "zorder": 2}
        axes.plot(line.index, line, marker="o" if len(line) == 1 else None, **style)
        if model == GLOBAL:
            band = errors[(model, task)].reindex(line.index).fillna(0.0)
            axes.fill_between(line.index, line - band, line + band, color="#000000", alpha=0.15, linewidth=0)
    whole_rounds(axes, int(losses.index.max()), ticks=4)
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
    from matplotlib.patches import Patch

    if len(models) > MOST_LINES + 1:
        handles: list[Any] = [Line2D([], [], label=GLOBAL, **line_style(GLOBAL, sites))]
        handles += [Line2D([], [], label="site with the task's data", color=line_style(sites[0], sites)["color"])]
        handles += [Patch(color=RANGE, alpha=0.5, label="range of the other sites")]
    else:
        handles = [Line2D([], [], label=model, **line_style(model, sites)) for model in models]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(7, len(handles)))


def heatmap_figure(
    final: DataFrame, owners: Mapping[str, Sequence[str]], best: Mapping[str, str], tasks_shown: int = MOST_HEAT_ROWS
) -> Figure:
    """Draw the last loss by task and model; the colour compares with the global model, a frame marks an owner.

    Args:
        final: one row per task, one column per model, the global model first.
        owners: the sites that train on each task.
        best: the model of each task that is lower than all others by more than the scatter of the samples, if any.
        tasks_shown: the number of tasks that are drawn at most.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    final = final.iloc[:tasks_shown]
    values = final.to_numpy(dtype=float)
    width = max(1.25, 0.13 * max(len(str(column)) for column in final.columns))
    figure, axes = new_figure(3.4 + width * values.shape[1], 1.6 + 0.42 * values.shape[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(values / values[:, [0]])
    colours = LinearSegmentedColormap.from_list("against global", HEAT_COLOURS)
    shown = axes.imshow(ratio, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        task, model = str(final.index[row]), str(final.columns[column])
        text = f"{value:.3f}" if np.isfinite(value) else "–"
        weight = "bold" if best.get(task) == model else "normal"
        axes.text(column, row, text, ha="center", va="center", weight=weight, fontsize=12)
        if model in owners[task]:
            corner = (column - 0.47, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="#111111", linewidth=1.6))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    tilt = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if values.shape[1] > 5 else {}
    axes.set_xticks(range(values.shape[1]), labels=list(final.columns), **tilt)
    axes.set_yticks(range(values.shape[0]), labels=list(final.index))
    axes.xaxis.tick_top()
    bar = figure.colorbar(shown, ax=axes, ticks=[-1, 0, 1], pad=0.02, fraction=0.04)
    bar.ax.set_yticklabels(["≤ half", "same", "≥ double"])
    bar.set_label("loss against the global model")
    return figure

"""The figures of an algorithm study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workflows.console.units import HOUR_S
from workflows.reporting.figure_style import SITE_COLOURS, SITE_DASHES
from workflows.studies.simulation.study_tables import Result, by_strategy, staleness_counts, times

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PANELS = ("fedavg", "fedasync", "fedbuff", "fedcompass")  # Figure 3 of arXiv 2603.19544


def style_of(number: int) -> dict[str, Any]:
    """Return colour and dashes of a line by its number."""
    count = len(SITE_COLOURS)
    return {"color": SITE_COLOURS[number % count], "linestyle": SITE_DASHES[number // count % len(SITE_DASHES)]}


def on_grid(curve: Sequence[Sequence[float]], grid_s: np.ndarray) -> np.ndarray:
    """Return the loss of the newest model at each time."""
    import numpy as np

    points = np.array([point[:2] for point in curve])
    return points[np.clip(np.searchsorted(points[:, 0], grid_s, "right") - 1, 0, None), 1]


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers that do not overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def paint_curves(results: Sequence[Result], target: float) -> Figure:
    """Draw the median over seeds of the global loss against virtual time."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6))
    axes = figure.add_subplot()
    grid = np.linspace(0, results[0]["run"]["budget_s"], 400)
    for number, (name, runs) in enumerate(by_strategy(results).items()):
        lines = np.array([on_grid(run["curve"], grid) for run in runs])
        axes.plot(grid / HOUR_S, np.median(lines, 0), label=name, **style_of(number))
        if len(lines) > 3:
            low, high = np.quantile(lines, (0.25, 0.75), 0)
            axes.fill_between(grid / HOUR_S, low, high, alpha=0.08, color=style_of(number)["color"], linewidth=0)
    axes.axhline(target, color="#888888", linewidth=1)
    axes.set(xlabel="virtual time (hours)", ylabel="loss on the common test set", yscale="log")
    plain_ticks(axes.yaxis)
    axes.legend(ncols=2)
    return figure


def paint_panels(results: Sequence[Result]) -> Figure | None:
    """Draw one campaign of each of the reference paper's four algorithms: the sites' own models and the global one."""
    from matplotlib.figure import Figure

    grouped = by_strategy(results)
    shown = [name for name in grouped if name.removesuffix("-published") in PANELS] or list(grouped)[:4]
    figure = Figure(figsize=(12, 3.6 * math.ceil(len(shown) / 2)), layout="constrained")
    for number, name in enumerate(shown, 1):
        axes = figure.add_subplot(math.ceil(len(shown) / 2), 2, number)
        _panel(axes, grouped[name][0], name)
    figure.supxlabel("virtual time (hours)")
    figure.supylabel("test loss")
    return figure


def _panel(axes: Axes, result: Result, name: str) -> None:
    for number, (site, curve) in enumerate(result["site_curves"].items()):
        if curve:
            axes.plot([t / HOUR_S for t, _ in curve], [loss for _, loss in curve], lw=1, label=site, **style_of(number))
    axes.plot([p[0] / HOUR_S for p in result["curve"]], [p[1] for p in result["curve"]], "k", lw=2, label="global")
    axes.set(title=name, ylim=(0, 4))
    if len(result["site_curves"]) <= 6:
        axes.legend(fontsize=9)


def paint_times(results: Sequence[Result], target: float) -> Figure:
    """Draw the hours to the target, a point for each seed; runs that did not reach it are at the right edge."""
    from matplotlib.figure import Figure

    grouped = by_strategy(results)
    figure = Figure(figsize=(10, 0.5 * len(grouped) + 1.5))
    axes = figure.add_subplot()
    edge = results[0]["run"]["budget_s"] / HOUR_S
    for row, runs in enumerate(grouped.values()):
        hours = times(runs, target)
        axes.plot([min(h, edge * 1.1) for h in hours], [row] * len(hours), "o", alpha=0.4, color=SITE_COLOURS[0])
        middle = statistics.median(hours)
        axes.plot(min(middle, edge * 1.1), row, "k|", markersize=18, markeredgewidth=2)
    axes.axvline(edge, color="#888888", linewidth=1)
    axes.set(xlabel=f"virtual hours to loss {target:g} (right of the line: never)", yticks=range(len(grouped)))
    axes.set_yticklabels(list(grouped))
    axes.invert_yaxis()
    return figure


def paint_staleness(results: Sequence[Result]) -> Figure:
    """Draw the share of the counted updates by their staleness; lines that coincide get narrower one by one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5))
    axes = figure.add_subplot()
    grouped = by_strategy(results)
    for number, (name, runs) in enumerate(grouped.items()):
        counts = dict(staleness_counts(runs))
        total, left, line = sum(counts.values()) or 1, 1.0, []
        for staleness in counts:
            line.append((staleness, left))
            left -= counts[staleness] / total
        line.append((max(counts, default=0) + 1, 1e-9))  # below the axis: nothing is as stale as that
        width = 1.5 + 5 * (1 - (number + 1) / len(grouped))
        look = {**style_of(number), "linewidth": width, "where": "post"}
        axes.step([s + 1 for s, _ in line], [share for _, share in line], label=name, **look)
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 1.2), ylabel="share of updates at least so stale")
    axes.set_xlabel("staleness in versions + 1")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.legend(ncols=2)
    return figure


def paint_fairness(results: Sequence[Result]) -> Figure:
    """Draw the mean and worst loss over the tasks, and the least and largest share of a site in the last model."""
    import numpy as np
    from matplotlib.figure import Figure

    grouped = by_strategy(results)
    figure = Figure(figsize=(12, 0.5 * len(grouped) + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, runs in enumerate(grouped.values()):
        left.plot(np.median([r["final_loss"] for r in runs]), row, "o", color=SITE_COLOURS[0])
        left.plot(np.median([r["worst_task_loss"] for r in runs]), row, "v", color=SITE_COLOURS[1])
        low, high = (np.median([f(r["shares"].values()) for r in runs]) for f in (min, max))
        right.plot([low, high], [row, row], "o-", color=SITE_COLOURS[2])
    left.set(xscale="log", xlabel="final loss: mean (dot), worst task (triangle)", yticks=range(len(grouped)))
    left.set_yticklabels(list(grouped))
    left.invert_yaxis()
    plain_ticks(left.xaxis)
    right.axvline(1 / results[0]["run"]["sites"], color="#888888", linewidth=1)
    right.set_xlabel("share of a site in the last model: least to most")
    return figure


def paint_node_hours(results: Sequence[Result]) -> Figure:
    """Draw the node-hours, and the part of them that did not contribute to the model."""
    import numpy as np
    from matplotlib.figure import Figure

    grouped = by_strategy(results)
    figure = Figure(figsize=(10, 0.5 * len(grouped) + 2.2), layout="constrained")
    axes = figure.add_subplot()
    whole = [np.median([r["node_hours"] for r in runs]) for runs in grouped.values()]
    wasted = [np.median([r["wasted_node_hours"] for r in runs]) for runs in grouped.values()]
    axes.barh(range(len(grouped)), whole, color=SITE_COLOURS[5], label="all")
    axes.barh(range(len(grouped)), wasted, color=SITE_COLOURS[1], label="idle, lost, or never counted")
    axes.set(xlabel="node-hours", yticks=range(len(grouped)))
    axes.set_yticklabels(list(grouped))
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)  # not on the bars
    return figure

"""The figures of a transfer study, as Figure 4 of arXiv 2603.19544, and the expected times of smaller files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workflows.console.units import UNIT_NAMES, bytes_text, time_unit
from workflows.reporting.figure_style import line_style, new_figure
from workflows.studies.transfers.line import LinearFit
from workflows.studies.transfers.rows import DIRECTIONS, MB, RETURN, SEND, Direction, TransferRow
from workflows.studies.transfers.savings import Saving
from workflows.studies.transfers.table import Speed, speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WAY_NAMES: Mapping[str, str] = {SEND: "to the site", RETURN: "back"}
MARKERS = "osD^vP*X"
FEW_DECADES = 100  # ratio of the ends of an axis
WIDE = 40  # a larger ratio of the rates gives a logarithmic axis
POINT: dict[str, Any] = {"linestyle": "", "marker": "o", "color": "#000000", "markersize": 4}
Lines = Mapping[tuple[str, str], LinearFit | None]


def sizes_figure(rows: Sequence[TransferRow], width: int) -> Figure:
    """Draw the bytes of the files against the parameters of the models, with the line of their precision.

    Args:
        rows: of the study.
        width: bytes of a parameter.
    """
    figure, axes = new_figure(7.5, 5.5)
    points = sorted({(row.parameters, row.nbytes, row.model) for row in rows})
    edges = [points[0][0] / 2, points[-1][0] * 2]
    axes.plot(edges, [width * edge for edge in edges], color="#999999", label=f"{width} byte{'s' * (width > 1)} each")
    axes.plot([p[0] for p in points], [p[1] for p in points], "o", color="#0072B2", markersize=9)
    for parameters, nbytes, name in points:
        axes.annotate(name, (parameters, nbytes), xytext=(9, -4), textcoords="offset points", va="top", fontsize=11)
    _log_axes(axes, "parameters", "bytes of the file")
    axes.set_xlim(edges[0], edges[1] * 3)
    axes.legend(loc="upper left")
    figure.suptitle("size of the files", x=0.02, ha="left")
    return figure


def speed_figure(rows: Sequence[TransferRow], lines: Lines) -> Figure:
    """Draw speed against size, a panel for each direction: medians, the range of the repeats, and the fitted line."""
    sites = list(dict.fromkeys(row.site for row in rows))
    figure, panels = new_figure(12, 5.8, ncols=2, sharey=True)
    for axes, way in zip(panels, DIRECTIONS, strict=True):
        for site in sites:
            _speed_line(axes, list(speeds(rows, site, way).values()), lines.get((site, way)), site, sites)
        axes.set_title(WAY_NAMES[way], loc="left")
        _log_axes(axes, "bytes of the file", "")
        _speed_axis(axes, [row.rate_mb_s for row in rows])
    panels[0].set_ylabel("MB/s")
    figure.suptitle("speed by size: measured, and fitted as t0 + bytes / B", x=0.02, ha="left")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _speed_axis(axes: Axes, rates: Sequence[float]) -> None:
    """Set a linear axis unless the rates have a wide range."""
    rates = [rate for rate in rates if not math.isnan(rate)] or [1.0]
    if max(rates) < WIDE * min(rates):
        axes.set_yscale("linear")
        axes.set_ylim(0, 1.08 * max(rates))


def _speed_line(axes: Axes, found: Sequence[Speed], line: LinearFit | None, site: str, sites: Sequence[str]) -> None:
    import numpy

    places = [speed.nbytes for speed in found]
    middles = [speed.middle for speed in found]
    spread = [[s.middle - s.low for s in found], [s.high - s.middle for s in found]]
    axes.errorbar(places, middles, yerr=spread, capsize=4, label=site, zorder=4, **_mark(site, sites))
    if line and places:
        sizes = numpy.geomspace(places[0], places[-1], 100)
        axes.plot(sizes, [size / line.seconds(size) / MB for size in sizes], **line_style(site, sites))


def _mark(site: str, sites: Sequence[str]) -> dict[str, Any]:
    marker = MARKERS[sites.index(site) % len(MARKERS)]
    return {"marker": marker, "markersize": 8, "linestyle": "", "color": line_style(site, sites)["color"]}


def mean_figure(rows: Sequence[TransferRow]) -> Figure:
    """Draw the mean speed of each destination over the models' medians; marks are the models."""
    sites = list(dict.fromkeys(row.site for row in rows))
    figure, axes = new_figure(max(6.5, 1.7 * len(sites) + 2), 5.5)
    for number, site in enumerate(sites):
        for offset, way in ((-0.2, SEND), (0.2, RETURN)):
            middles = [speed.middle for speed in speeds(rows, site, way).values()]
            mean = sum(middles) / max(1, len(middles))
            axes.bar(number + offset, mean, 0.36, **_bar(way, line_style(site, sites)["color"]))
            axes.plot([number + offset] * len(middles), middles, **POINT)
    axes.set_xticks(range(len(sites)), sites)
    axes.grid(False, axis="x")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("MB/s")
    figure.suptitle("mean speed of the destinations", x=0.02, ha="left")
    _bar_legend(figure)
    return figure


def _bar(way: Direction, colour: str) -> dict[str, Any]:
    return {"facecolor": colour if way == SEND else "#FFFFFF", "edgecolor": colour, "linewidth": 2.0}


def _bar_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [Patch(**_bar(way, "#777777")) for way in DIRECTIONS]
    names = [*(WAY_NAMES[way] for way in DIRECTIONS), "one model"]
    figure.legend([*marks, Line2D([], [], **POINT)], names, loc="outside lower center", ncols=3)


def savings_figure(name: str, ways: Sequence[Saving]) -> Figure:
    """Draw bytes and expected seconds of a round trip for each representation of a model.

    Args:
        name: of the model.
        ways: large files first.
    """
    figure, (left, right) = new_figure(12.5, 5.6, ncols=2, sharey=True)
    places = list(range(len(ways)))[::-1]
    bars = left.barh(places, [way.nbytes for way in ways], color="#88CCEE")
    left.bar_label(bars, [bytes_text(way.nbytes) for way in ways], padding=4)
    left.set_yticks(places, [way.name for way in ways])
    left.set_xscale("log")
    left.set_xlim(ways[-1].nbytes / 2, ways[0].nbytes * 4)
    left.set_xlabel("bytes of the file")
    _label_ticks(left.xaxis, "B")
    _expected(right, ways, places)
    figure.suptitle(f"{name}: what is sent, and how long a trip there and back would take", x=0.02, ha="left")
    if ways[0].seconds:
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _expected(axes: Axes, ways: Sequence[Saving], places: Sequence[int]) -> None:
    sites = list(ways[0].seconds)
    if not sites:
        axes.text(0.5, 0.5, "too few sizes to fit", transform=axes.transAxes, ha="center")
        return
    unit, length = time_unit(max(ways[0].seconds.values()))
    for site in sites:
        look = {**_mark(site, sites), "markersize": 9, "alpha": 0.8}
        for way, place in zip(ways, places, strict=True):
            inside: dict[str, Any] = {"markerfacecolor": "#FFFFFF"} if way.beyond else {}
            axes.plot(way.seconds[site] / length, place, **look, **inside)
        axes.plot([], [], label=site, **look)
    axes.set_xscale("log")
    hollow = "; hollow: not within what was measured" if any(way.beyond for way in ways) else ""
    axes.set_xlabel(f"expected {UNIT_NAMES[unit]}{hollow}")


def _log_axes(axes: Axes, across: str, up: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    for axis, label in ((axes.xaxis, across), (axes.yaxis, up)):
        _label_ticks(axis, "B" if label.startswith("bytes") else "")


def _label_ticks(axis: Axis, unit: str) -> None:
    """Label each power of ten of a logarithmic axis, and numbers between if there are few of these."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_formatter(EngFormatter(unit))
    axis.set_minor_formatter(NullFormatter())
    if high < FEW_DECADES * low:
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axis.set_minor_formatter(EngFormatter(unit))

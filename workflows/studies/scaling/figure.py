"""The figure of a scaling study, as Figure 1 of arXiv 2603.19544: samples a second against nodes and devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workflows.reporting.figure_style import line_style, new_figure
from workflows.studies.scaling.table import ScalingRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"none": "o", "ddp": "D", "shard_grad_op": "s", "full_shard": "^"}
WIDE = 6  # a larger ratio of the rates gives logarithmic axes
IDEAL: dict[str, Any] = {"color": "#999999", "linewidth": 1.0, "linestyle": (0, (1, 2)), "zorder": 1}


def scaling_figure(rows: Sequence[ScalingRow]) -> Figure:
    """Draw two panels with a line for each site: nodes and devices; one where they would be the same.

    Marks show the sharding: half filled with checkpointing of activations, empty with offloading. Dotted lines start at
    a site's smallest size and grow in proportion: measured points below them show lost time.
    """
    sites = list(dict.fromkeys(row.site for row in rows))
    sizes = {(row.nodes, row.devices) for row in rows}
    if len(sizes) == 1 or all(nodes == devices for nodes, devices in sizes):
        figure, right = new_figure(7.5, 6.2)
        left = None
    else:
        figure, (left, right) = new_figure(12, 6.2, ncols=2, sharey=True)
    panels = [
        (axes, label, size) for axes, label, size in ((left, "nodes", _nodes), (right, "devices", _devices)) if axes
    ]
    for site in sites:
        own = sorted((row for row in rows if row.site == site), key=lambda row: row.devices)
        for axes, _, size in panels:
            _line(axes, own if axes is right else _largest_at(own, size), size, sites)
    fastest, slowest = max(row.high for row in rows), min(row.low for row in rows)
    for axes, label, size in panels:
        _finish(axes, label, [size(row) for row in rows], fastest > WIDE * slowest)
    panels[0][0].set_ylabel("samples a second")
    micro_batches = sorted({row.micro_batch for row in rows})
    each = " or ".join(map(str, micro_batches))
    samples = "sample" if micro_batches == [1] else "samples"
    figure.suptitle(f"training throughput, {each} {samples} a device and pass", x=0.02, ha="left")
    _legend(figure, right, rows)
    return figure


def _nodes(row: ScalingRow) -> int:
    return row.nodes


def _devices(row: ScalingRow) -> int:
    return row.devices


def _largest_at(own: Sequence[ScalingRow], size: Callable[[ScalingRow], int]) -> list[ScalingRow]:
    """Return of several rows of one size the one with the most devices, so that a panel's line does not turn back."""
    return list({size(row): row for row in own}.values())


def _line(axes: Axes, own: Sequence[ScalingRow], size: Callable[[ScalingRow], int], sites: Sequence[str]) -> None:
    style = line_style(own[0].site, sites)
    places = [size(row) for row in own]
    axes.plot(places, [row.samples_per_s for row in own], label=own[0].site, **style)
    axes.plot(places, [own[0].samples_per_s * place / places[0] for place in places], **IDEAL)
    for row, place in zip(own, places, strict=True):
        spread = [[row.samples_per_s - row.low], [row.high - row.samples_per_s]]
        axes.errorbar(
            [place], [row.samples_per_s], yerr=spread, capsize=4, zorder=4, **_mark(row.sharding, style["color"])
        )


def _mark(full: str, colour: str) -> dict[str, Any]:
    """Return the mark of a sharding such as ``full_shard+ckpt+offload``."""
    sharding, *extras = full.split("+")
    inside = "#FFFFFF" if "offload" in extras else colour
    return {
        "marker": MARKERS[sharding],
        "markersize": 9,
        "color": colour,
        "markerfacecolor": inside,
        "markerfacecoloralt": "#FFFFFF",
        "fillstyle": "left" if extras == ["ckpt"] else "full",
    }


def _finish(axes: Axes, label: str, sizes: Sequence[int], wide: bool) -> None:
    """Label the axes with the measured sizes; logarithmic for a wide range of rates."""
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    axes.set_xlabel(label)
    if not wide:
        axes.set_xticks([0, *sorted(set(sizes))])
        axes.set_xlim(0, max(sizes) * 1.1)
        axes.set_ylim(bottom=0)
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sorted(set(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(sizes) / 1.3, max(sizes) * 1.3)


def _legend(figure: Figure, axes: Axes, rows: Sequence[ScalingRow]) -> None:
    from matplotlib.lines import Line2D

    lines, names = axes.get_legend_handles_labels()
    for sharding in dict.fromkeys(row.sharding for row in rows):
        lines.append(Line2D([], [], linestyle="", **_mark(sharding, "#555555")))
        names.append(sharding.replace("+ckpt", ", checkpointing").replace("+offload", ", offload"))
    lines.append(Line2D([], [], **IDEAL))
    names.append("in proportion")
    figure.legend(lines, names, loc="outside lower center", ncols=4)

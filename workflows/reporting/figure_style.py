"""Common style of the figures: one colour per site and phase, common axes, and writing a figure to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.files import atomic_file
from workflows.records.scores import GLOBAL
from workflows.records.timeline import AGGREGATION, EVALUATION, HOUSEKEEPING, STAGING_IN, STAGING_OUT, TRAINING, WAITING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 12  # sites with a line of their own; of more, their range is drawn
MOST_MARKS = 40  # rounds that are marked one by one
MOST_PIXELS = 50_000_000  # of a picture; a larger one is a mistake, and takes gigabytes to draw
DPI = 150
# Okabe and Ito's colours without yellow, which is too light for a line, then six of Paul Tol's muted ones:
# both sets stay apart for colour-blind readers, and the dashes change where the second set begins.
SITE_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#332288", "#882255", "#117733", "#999933", "#AA4499", "#777777"),
)
SITE_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
PHASE_COLOURS = {
    STAGING_OUT: "#44AA99",
    WAITING: "#D5D5D5",
    TRAINING: "#332288",
    STAGING_IN: "#88CCEE",
    AGGREGATION: "#000000",
    EVALUATION: "#999933",
    HOUSEKEEPING: "#CC6677",
}
DOWN_COLOUR = "#F3D9D9"
JOB_COLOUR = "#E69F00"
JOB_QUEUE_LOOK: dict[str, Any] = {"facecolor": "#FFFFFF", "edgecolor": "#777777", "hatch": "//////"}
LOST_LOOK: dict[str, Any] = {
    "linestyle": "",
    "marker": "X",
    "markersize": 9,
    "color": "#000000",
    "markeredgecolor": "#FFFFFF",
    "zorder": 6,
}
HEAT_COLOURS = ("#4393C3", "#F7F7F7", "#E07B5D")  # better, same, worse; black text reads on all of them
STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 13,
    "figure.labelsize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 12,
    "hatch.linewidth": 0.6,
}


def save(path: Path, draw: Callable[..., Figure], *inputs: Any) -> Path:
    """Draw a figure in the common style and write it as a PNG, whole or not at all.

    Args:
        path: of the PNG.
        draw: returns the figure.
        inputs: its arguments.

    Raises:
        StorageError: the file cannot be written.
        ValueError: the picture would have more than ``MOST_PIXELS``.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with rc_context(STYLE):
        figure = draw(*inputs)
        canvas = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        box = figure.get_tightbbox(canvas.get_renderer()).padded(0.15)  # in inches
        pixels = box.width * box.height * DPI**2
        if not pixels <= MOST_PIXELS:
            raise ValueError(f"{box.width:.0f} x {box.height:.0f} inches are too large")
        with atomic_file(path.parent, path.name) as stream:
            figure.savefig(stream, format="png", dpi=DPI, bbox_inches=box)
    return path


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions closest to those wanted, in the same order, ``gap`` apart and within [low, high].

    Least squares by pooling adjacent violators (isotonic regression; Barlow et al., 1972) on the positions less their
    rank times the gap. If there is too little room, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        pools.append((wanted[index] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = (pools[-1][0] + total, pools[-1][1] + count)
    starts = [total / count for total, count in pools for _ in range(count)]
    room = max(low, high - (len(wanted) - 1) * gap)
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = min(max(starts[rank], low), room) + rank * gap
    return placed


def line_style(model: str, sites: Sequence[str]) -> dict[str, Any]:
    """Return the line style of a model: the global one black and thick, each site a colour (beyond six, dashes)."""
    if model == GLOBAL:
        return {"color": "#000000", "linewidth": 3.2, "linestyle": "-", "zorder": 5}
    index = sites.index(model)
    colour, dashes = SITE_COLOURS[index % len(SITE_COLOURS)], SITE_DASHES[index // 6 % len(SITE_DASHES)]
    return {"color": colour, "linewidth": 2.0, "linestyle": dashes, "zorder": 3}


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def whole_rounds(axes: Axes, last: int, first: int = 0, ticks: int = 10) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.set_xlim(first - 0.25, max(last, first + 1) + 0.25)

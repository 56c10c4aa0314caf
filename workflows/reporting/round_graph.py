"""The picture of one round as it ran: its tasks as boxes with seconds and bytes, its results as arrows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from workflows.console.units import bytes_text, plural, seconds_text
from workflows.records.round_graph import GraphTask, RoundGraph
from workflows.records.timeline import AGGREGATION, EVALUATION, STAGING_IN, STAGING_OUT, TRAINING
from workflows.reporting.figure_style import PHASE_COLOURS, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SITES = 12  # drawn; of more, the first to return
WIDTH, HEIGHT = 0.78, 0.62  # of a box; columns and rows are 1 apart
PHASES = {
    "stage_out": STAGING_OUT,
    "send": STAGING_OUT,
    "local_train": TRAINING,
    "fetch": STAGING_IN,
    "stage_in": STAGING_IN,
    "aggregate": AGGREGATION,
    "evaluate": EVALUATION,
}
Place = tuple[float, float]  # column, row


def round_graph_figure(graph: RoundGraph, sites: Sequence[str]) -> Figure:
    """Draw the tasks behind the newest model, one row a site, and the arrows between them."""
    drawn = list(graph.chains)[:MOST_SITES]
    places = dict(_places(graph, drawn))
    columns = max(column for column, _ in places.values()) + 1
    figure, axes = new_figure(2.3 * columns, 1.1 + 0.72 * len(drawn))
    tasks = {task.key: task for task in _all(graph)}
    for key, place in places.items():
        for source in tasks[key].depends:
            if source in places:
                _arrow(axes, places[source], place)
        _box(axes, tasks[key], place, len(graph.evaluations))
    for row, site in enumerate(drawn):
        axes.text(
            0.63,
            row - 0.38,
            site,
            color=line_style(site, sites)["color"],
            fontsize=11,
            va="center",
            zorder=4,
            bbox={"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 0.5},
        )
    if len(graph.chains) > len(drawn):
        more = f"and {plural(len(graph.chains) - len(drawn), 'more site')}"
        axes.text(0.6, len(drawn) - 0.4, more, fontsize=11, va="center")
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(len(drawn) - 0.3, -0.7)
    axes.axis("off")
    return figure


def _all(graph: RoundGraph) -> Iterator[GraphTask]:
    yield from graph.bases
    for chain in graph.chains.values():
        yield from chain
    yield graph.aggregate
    yield from graph.evaluations[:1]


def _places(graph: RoundGraph, drawn: Sequence[str]) -> Iterator[tuple[str, Place]]:
    """Yield the column and the row of each task that is drawn; of the evaluations that of the new model."""
    middle = (len(drawn) - 1) / 2
    rows: Mapping[str, list[int]] = {base.key: [] for base in graph.bases}
    for row, site in enumerate(drawn):
        for column, task in enumerate(graph.chains[site]):
            yield task.key, (column + 1.0, float(row))
            for source in task.depends:
                if source in rows:
                    rows[source].append(row)
    for key, consumers in rows.items():
        yield key, (0.0, sum(consumers) / len(consumers) if consumers else middle)
    last = max((len(chain) for chain in graph.chains.values()), default=0) + 1.0
    yield graph.aggregate.key, (last, middle)
    for task in graph.evaluations[:1]:
        yield task.key, (last + 1.0, middle)


def _box(axes: Axes, task: GraphTask, place: Place, evaluations: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    column, row = place
    is_base = task.app == "prepare" or column == 0
    colour = "#555555" if is_base else PHASE_COLOURS[PHASES.get(task.app, AGGREGATION)]
    corner = (column - WIDTH / 2, row - HEIGHT / 2 + 0.08)
    axes.add_patch(
        FancyBboxPatch(
            corner,
            WIDTH,
            HEIGHT - 0.1,
            boxstyle="round,pad=0.01,rounding_size=0.06",
            facecolor="#FFFFFF",
            edgecolor=colour,
            linewidth=1.8,
            zorder=3,
        )
    )
    title, detail = _title(task, is_base, evaluations), _detail(task)
    axes.text(column, row - (0.05 if detail else -0.03), title, ha="center", va="center", fontsize=11, zorder=4)
    if detail:
        axes.text(column, row + 0.15, detail, ha="center", va="center", fontsize=9.5, color="#444444", zorder=4)


def _title(task: GraphTask, is_base: bool, evaluations: int) -> str:
    if is_base:
        return f"model {task.version}"
    if task.app == "aggregate":
        return f"aggregate: model {task.version}"
    return f"evaluate, {evaluations} models" if task.app == "evaluate" and evaluations > 1 else task.app


def _detail(task: GraphTask) -> str:
    seconds = "" if task.seconds is None else seconds_text(task.seconds)
    nbytes = bytes_text(task.nbytes) if task.nbytes else ""
    return ", ".join(filter(None, (seconds, nbytes)))


def _arrow(axes: Axes, source: Place, target: Place) -> None:
    axes.annotate(
        "",
        xy=(target[0] - WIDTH / 2, target[1] + 0.03),
        xytext=(source[0] + WIDTH / 2, source[1] + 0.03),
        arrowprops={"arrowstyle": "-|>", "color": "#888888", "linewidth": 1.2, "shrinkA": 1, "shrinkB": 1},
        zorder=2,
    )

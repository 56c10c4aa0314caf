"""The report of a run: one self-contained page, and its figures as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.files import write_text
from workflows.records.event_log import full_model_nbytes, moves, task_runs
from workflows.records.round_graph import last_round
from workflows.reporting.captions import (
    cost_caption,
    graph_caption,
    heatmap_caption,
    loss_caption,
    task_caption,
    timeline_caption,
)
from workflows.reporting.figure_style import save
from workflows.reporting.figures import cost_figure, heatmap_figure, loss_figure, task_figure
from workflows.reporting.gantt import timeline_figure
from workflows.reporting.page import page
from workflows.reporting.round_graph import round_graph_figure
from workflows.reporting.run_summary import RunRecord, RunSummary, load_run, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png`, and return the path of the page.

    Args:
        run_dir: finished or not.
        out: folder to write into; the run directory if None.

    Raises:
        UserMistake: the run directory is missing or damaged.
        StorageError: the report cannot be written.
    """
    run = load_run(run_dir)
    folder = run_dir if out is None else out
    summary = summarize(run)
    pictures = draw(run, summary, folder / "figures")
    write_text(folder / "report.html", page(run, summary, pictures))
    return folder / "report.html"


def draw(run: RunRecord, summary: RunSummary, folder: Path) -> list[tuple[str, str, Path]]:
    """Draw the figures that the run has data for; return title, caption and file of each."""
    tasks, pictures = task_runs(run.journal), []

    def add(title: str, caption: str, name: str, figure: Callable[..., Figure], *inputs: Any) -> None:
        pictures.append((title, caption, save(folder / name, figure, *inputs)))

    if run.models:
        means = (run.mean_losses, run.sites, len(run.owners), run.period)
        add("Loss", loss_caption(run, summary), "loss.png", loss_figure, *means)
        lines = (run.losses, run.owners, run.sites, run.period)
        add("Loss by task", task_caption(summary), "loss_per_task.png", task_figure, *lines)
    if summary.compared:
        finals = (run.final_losses, run.owners)
        add("Final losses", heatmap_caption(summary), "final_heatmap.png", heatmap_figure, *finals)
    if run.timeline.intervals:
        add("Time", timeline_caption(run), "timeline.png", timeline_figure, run.timeline, run.sites)
    if run.timeline.round_starts:
        costs = (moves(tasks), run.timeline, full_model_nbytes(tasks), run.sites)
        add("Bytes and seconds", cost_caption(run, summary), "bytes_seconds.png", cost_figure, *costs)
    if graph := last_round(run.journal):
        add("Graph of a round", graph_caption(graph), "round_graph.png", round_graph_figure, graph, run.sites)
    return pictures

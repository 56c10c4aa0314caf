"""The report of a run: one self-contained page, and its figures as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError
from apps.base.files import write_text
from workflows.records.event_log import full_model_nbytes, moves
from workflows.records.round_graph import last_round
from workflows.records.scores import GLOBAL
from workflows.reporting.captions import cost_caption, graph_caption, timeline_caption
from workflows.reporting.cost_figures import cost_figure
from workflows.reporting.figure_style import MOST_LINES, save
from workflows.reporting.gantt import timeline_figure
from workflows.reporting.loss_captions import heatmap_caption, loss_caption, task_caption, unit_text
from workflows.reporting.loss_figures import HIGH, LOW, MEDIAN, heatmap_figure, loss_figure, task_figure
from workflows.reporting.page import page
from workflows.reporting.round_graph import round_graph_figure
from workflows.reporting.run_record import RunRecord, load_run
from workflows.reporting.run_summary import RunSummary, lowest_models, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

logger = logging.getLogger(__name__)


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png`, and return the path of the page.

    Args:
        run_dir: finished or not; its driver may be at work.
        out: folder to write into; the run directory if None.

    Raises:
        UserMistake: the run directory is missing or damaged.
        StorageError: the report cannot be written.
    """
    run = load_run(run_dir)
    folder = run_dir if out is None else out
    summary = summarize(run)
    pictures, notes = draw(run, summary, folder / "figures")
    write_text(folder / "report.html", page(run, summary, pictures, notes))
    return folder / "report.html"


Picture = tuple[str, str, Path]  # title, caption, file


def draw(run: RunRecord, summary: RunSummary, folder: Path) -> tuple[list[Picture], list[str]]:
    """Draw the figures that the run has data for.

    Returns:
        The pictures, and notes about those that could not be drawn: a picture must never end a campaign.

    Raises:
        StorageError: a file cannot be written.
    """
    pictures: list[Picture] = []
    notes: list[str] = []
    for title, caption, name, figure in figures_of(run, summary):
        try:
            pictures.append((title, caption(), save(folder / name, figure)))
        except CrossfedError:
            raise
        except Exception as error:  # whatever a library makes of unusual numbers
            logger.exception("the picture %s could not be drawn", name)
            notes.append(f"The picture '{title}' could not be drawn ({type(error).__name__}: {error}).")
    return pictures, notes


def figures_of(
    run: RunRecord, summary: RunSummary
) -> Iterator[tuple[str, Callable[[], str], str, Callable[[], Figure]]]:
    """Yield title, caption, file name and figure of each picture that the run has data for; the latter as functions."""
    names: dict[str, Any] = {"period": run.period, "unit": unit_text(run)}
    if run.models:
        means = (run.mean_losses, run.mean_errors, run.sites, len(run.owners))
        mean_loss = partial(loss_figure, *means, **names, uniform=run.uniform_loss)
        yield "Loss", partial(loss_caption, run, summary), "loss.png", mean_loss
        lines = partial(task_figure, run.losses, run.tables.error, run.owners, run.sites, **names)
        yield "Loss by task", partial(task_caption, run, summary), "loss_per_task.png", lines
    if summary.compared:
        few = len(run.models) <= MOST_LINES + 1
        final = run.final_losses if few else of_the_range(run)
        heat = partial(heatmap_figure, final, run.owners, lowest_models(run) if few else {})
        yield "Final losses", partial(heatmap_caption, run, summary), "final_heatmap.png", heat
    if run.timeline.intervals:
        gantt = partial(timeline_figure, run.timeline, run.sites)
        yield "Time", partial(timeline_caption, run), "timeline.png", gantt
    if run.timeline.round_starts:
        costs = partial(cost_figure, moves(run.tasks), run.timeline, full_model_nbytes(run.tasks), run.sites)
        yield "Bytes and seconds", partial(cost_caption, run, summary), "bytes_seconds.png", costs
    if graph := last_round(run.journal):
        picture = partial(round_graph_figure, graph, run.sites)
        yield "Graph of a round", partial(graph_caption, graph), "round_graph.png", picture


def of_the_range(run: RunRecord) -> DataFrame:
    """Return the last losses of the global model, and the lowest, the median and the highest of the sites' models."""
    import pandas

    sites = run.final_losses.drop(columns=GLOBAL)
    columns = {GLOBAL: run.final_losses[GLOBAL], LOW: sites.min(axis=1), MEDIAN: sites.median(axis=1)}
    return pandas.DataFrame({**columns, HIGH: sites.max(axis=1)})

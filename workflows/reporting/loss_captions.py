"""Text of the report about losses: how many samples are behind them, their scatter, and what the figures show."""

from __future__ import annotations

from itertools import pairwise

from workflows.console.units import plural
from workflows.records.scores import CLOSE, GLOBAL, SIGNIFICANT, differs
from workflows.reporting.figure_style import MOST_LINES
from workflows.reporting.loss_figures import MOST_HEAT_ROWS, MOST_PANELS
from workflows.reporting.run_record import RunRecord
from workflows.reporting.run_summary import RunSummary, known

NONE = "–"
MOST_NAMED = 6  # rounds, or tasks, in a sentence


def loss_text(value: float | None) -> str:
    return NONE if value is None or value != value else f"{value:.3f}"


def within(loss: float | None, error: float | None) -> str:
    """Return a loss with its standard error, where that is known."""
    return loss_text(loss) if loss is None or error is None or error != error else f"{loss:.3f} ± {error:.3f}"


def unit_text(run: RunRecord) -> str:
    """Return the unit of the losses."""
    data = run.campaign.get("data")
    every_token = isinstance(data, dict) and data.get("loss_on") == "all"
    return "nats per token" if every_token else "nats per token of the answer"


def samples_text(run: RunRecord) -> str:
    """Return how many test samples of a task are behind its losses, and what the intervals are; empty if not known."""
    counts = sorted(set(run.samples.values()))
    if not counts:
        return ""
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    text = f"{span} test {'sample of each task was' if counts[-1] == 1 else 'samples of each task were'} scored"
    if GLOBAL in run.models and run.mean_errors[GLOBAL].notna().any():
        return f"{text}; ± is one standard error over the samples, of one run with one seed."
    return f"{text}; their scatter is not recorded, so that no interval can be given."


def change_text(summary: RunSummary) -> str:
    """Return how the mean test loss of the global model has changed, from its first score to its last."""
    first, last = summary.loss_first, summary.loss_last
    if first is None or last is None:
        return ""
    verb = "fell" if last < first else "did not fall: it went"
    if not differs(last - first, summary.error_first, summary.error_last, scale=first):
        verb = "changed by no more than its samples scatter,"
    return f"{verb} from {first:.3f} to {within(last, summary.error_last)} nats per token"


def site_model_text(run: RunRecord, summary: RunSummary, site: str) -> str:
    """Return what the model of a site is: no site trains alone."""
    return f"the global model after {site}'s own steps of {run.period} {summary.last_of_site[site]}"


def loss_caption(run: RunRecord, summary: RunSummary) -> str:
    if summary.loss_last is None or summary.rounds == 0:
        return "No trained global model has been scored yet."
    text = f"Mean test loss over the tasks, {unit_text(run)}: after {run.period} {summary.rounds} the global model is "
    text += f"at {within(summary.loss_last, summary.error_last)}."
    if summary.site_losses:
        above = sum(loss > summary.loss_last for loss in summary.site_losses.values())
        text += f" The last scores of {above} of {plural(len(summary.site_losses), 'site model')} are above it."
    text += f" {trend_text(run)} {samples_text(run)}"
    if run.uniform_loss is not None:
        text += f" A uniform guess over the vocabulary is at {run.uniform_loss:.3f}."
    return " ".join(text.split())


def trend_text(run: RunRecord) -> str:
    """Return where the global loss rose by more than its samples scatter, or that it fell; two scores are no trend."""
    means, errors = run.mean_losses[GLOBAL].dropna(), run.mean_errors[GLOBAL]
    risen = [
        str(now)
        for before, now in pairwise(means.index)
        if (rise := means[now] - means[before]) > 0
        and differs(rise, known(errors[before]), known(errors[now]), scale=means[before])
    ]
    if risen:
        return f"It rose in {run.period} {_first_names(risen)}."
    if len(means) < 3 or not bool((means.diff().iloc[1:] < 0).all()):
        return ""
    every = len(means) == means.index[-1] + 1
    return f"It fell in every {run.period}." if every else f"It fell from each of its {len(means)} scores to the next."


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def task_caption(run: RunRecord, summary: RunSummary) -> str:
    evaluation = run.campaign.get("evaluation")
    if not summary.compared and isinstance(evaluation, dict) and evaluation.get("sites") is False:
        return f"Test loss, {unit_text(run)}. The campaign does not score the sites' models (evaluation.sites is off)."
    if not summary.compared:
        return f"Test loss, {unit_text(run)}. No site's model has been scored yet."
    text = f"At its last score the global model is below every site's model on {len(summary.global_wins)} of "
    text += f"{plural(summary.compared, 'task')}; on {len(summary.owner_wins)} of {summary.compared} the model of a "
    text += "site that trains on the task is below it; on the others, the difference to the lowest is within "
    text += f"{_scatter_text(run)}. Black: the global model, its band one standard error; coloured: sites that train "
    text += "on the task; " + ("grey: the range of the others. " if len(run.sites) > MOST_LINES else "dotted: others. ")
    text += _drawn_text(len(run.owners), MOST_PANELS) + "A site's model is the global model after the site's own "
    return f"{text}steps of that {run.period}. {samples_text(run)}"


def _scatter_text(run: RunRecord) -> str:
    known_errors = run.final_errors.notna().to_numpy().any()
    return f"{SIGNIFICANT:.0f} standard errors" if known_errors else f"{CLOSE:.0%}"


def _drawn_text(count: int, shown: int) -> str:
    return f"Drawn are the first {shown} of {count} tasks; the table has all. " if count > shown else ""


def heatmap_caption(run: RunRecord, summary: RunSummary) -> str:
    text = f"Last test loss on each task, {unit_text(run)}; blue is lower and red higher than the global model"
    if len(run.sites) <= MOST_LINES:
        text += f", bold is the lowest of the row where it is so by more than {_scatter_text(run)}, "
        text += "a frame marks a site that trains on the task"
    text += f". {_drawn_text(len(run.owners), MOST_HEAT_ROWS)}"
    if summary.owner_wins:
        named = _first_names(list(summary.owner_wins))
        text += f"The model of a site that trains on the task is below the global model on {named}."
    return text.strip()

"""Text of the report: the subtitle, the lead, the big numbers, the captions of figures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from workflows.console.units import HOUR_S, bytes_text, plural, seconds_text, times_text
from workflows.records.round_graph import RoundGraph
from workflows.records.timeline import (
    TRAINING,
    WAITING,
    Interval,
    Timeline,
    idle_share,
    phase_seconds,
    round_at,
    round_lengths,
)
from workflows.reporting.gantt import MOST_ROWS, SHARE_PARTS, is_dense
from workflows.reporting.loss_captions import change_text, loss_text, site_model_text, within
from workflows.reporting.run_record import RunRecord
from workflows.reporting.run_summary import RunSummary


def hours_text(node_s: float) -> str:
    """Return node-seconds as node-hours, with three digits or as a whole number."""
    hours = node_s / HOUR_S
    return f"{hours:,.0f}" if hours >= 99.5 else f"{hours:.3g}"


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of the campaign; empty if it is absent."""
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def subtitle(run: RunRecord) -> str:
    """Return the line with model, adapter, seed and date."""
    model = _section(run.campaign, "model")
    adapter = _section(model, "adapter")
    parts = [f"model {model.get('source', 'unknown')} ({model.get('dtype', 'unknown dtype')})"]
    settings = ", ".join(f"{key} {adapter[key]}" for key in ("rank", "alpha") if key in adapter)
    method = f"{adapter.get('method', 'adapter')} {settings}".strip()
    parts.append(method if adapter else "all parameters trained")
    parts.append(f"seed {run.campaign.get('seed', 'unknown')}")
    if run.journal.events:
        opened = datetime.fromtimestamp(run.journal.events[0]["time"], UTC)
        parts.append(f"opened {opened:%Y-%m-%d %H:%M} UTC")
    return " · ".join(parts)


def lead_text(run: RunRecord, summary: RunSummary) -> str:
    """Summarize the campaign in two or three sentences."""
    strategy = _section(run.campaign, "strategy").get("name", "unnamed")
    size = f"{plural(len(run.sites), 'site')}, {plural(len(run.owners), 'task')}, strategy {strategy}"
    planned = run.campaign.get("rounds")
    rounds = plural(summary.rounds, run.period) + (f" of {planned} planned" if planned != summary.rounds else "")
    if summary.loss_first is None or summary.loss_last is None:
        return f"{size}; no model has been scored yet."
    if summary.rounds == 0:
        return f"{size}. Only the untrained model is scored; its mean test loss is {summary.loss_first:.3f}."
    text = f"{size}. In {rounds} the mean test loss of the global model {change_text(summary)}."
    if summary.best_site:
        best = summary.best_site
        text += f" The best of the sites' models, {site_model_text(run, summary, best)}, "
        text += f"is at {summary.site_losses[best]:.3f}."
    return text


def big_numbers(run: RunRecord, summary: RunSummary) -> list[tuple[str, str]]:
    """Return the big numbers at the top, each with its label."""
    planned = run.campaign.get("rounds")
    noun = run.period if (planned or summary.done) == 1 else f"{run.period}s"
    done = f"{summary.done} of {planned}" if planned else str(summary.done)
    numbers = [(done, f"{noun} done, {summary.scored} of them scored")]
    ends = f"{loss_text(summary.loss_first)} → {within(summary.loss_last, summary.error_last)}"
    numbers.append((ends, "mean test loss of the global model, nats per token"))
    if summary.best_site:
        best = summary.best_site
        label = f"best site's model: {site_model_text(run, summary, best)}"
        numbers.append((loss_text(summary.site_losses[best]), label))
    numbers.append((f"{summary.tokens:,}", "tokens trained"))
    numbers.append((bytes_text(summary.nbytes_moved), f"moved; full model: {_full_text(summary)}"))
    held_node_s = sum(site.held_node_s for site in run.site_jobs)
    held = ""
    if held_node_s:
        share = sum(site.trained_node_s for site in run.site_jobs) / held_node_s
        held = f"; {hours_text(held_node_s)} node-hours held in batch jobs, {share:.0%} of them training"
    numbers.append((seconds_text(summary.wall_s), "wall time" + held))
    return numbers


def _full_text(summary: RunSummary) -> str:
    return "unknown" if summary.nbytes_full is None else bytes_text(summary.nbytes_full)


def timeline_caption(run: RunRecord) -> str:
    timeline = run.timeline
    text = f"Phases of each site over time; dotted lines mark where {run.period}s begin."
    if timeline.waits:
        worst = max(timeline.waits, key=lambda wait: wait.length_s)
        where = "in a queue" if timeline.queued else "for a worker"
        text += f" The longest wait {where} was {seconds_text(worst.length_s)} at {worst.row} {_when(worst, timeline)}."
    idle = {site: idle_share(timeline, site) for site in run.sites}
    most = max(idle, key=idle.__getitem__, default=None)
    text += f" {most} was idle most, {idle[most]:.0%} of the time." if most else ""
    text += " The band under a site shows its batch jobs." if timeline.jobs else ""
    if len(run.sites) > MOST_ROWS:
        text += f" Of {len(run.sites)} sites those {MOST_ROWS} are drawn that waited longest."
    if is_dense(timeline):
        text += f" Each of {SHARE_PARTS} parts of the time shows which share of it the phases took."
    if timeline.down:
        gaps = plural(len(timeline.down), "gap")
        text += f" The driver was down for at most {seconds_text(timeline.down_s)} in {gaps}."
    return text


def _when(wait: Interval, timeline: Timeline) -> str:
    """Return the round of a wait, or the one until which it lasted."""
    if not wait.round:
        return f"before the first {timeline.period}"
    same = round_at(timeline.round_starts, wait.start_s) == wait.round
    return f"{'in' if same else 'until'} {timeline.period} {wait.round}"


def cost_caption(run: RunRecord, summary: RunSummary) -> str:
    text = f"{bytes_text(summary.nbytes_moved)} moved between server and sites"
    if summary.nbytes_full:
        times = times_text(summary.nbytes_full / max(1, summary.nbytes_moved))
        text += f"; the full model in the same transfers: {bytes_text(summary.nbytes_full)}, {times}"
    lengths = sum(round_lengths(run.timeline).values())
    if lengths:
        phases = phase_seconds(run.timeline).values()
        trained, waited = (sum(p.get(name, 0.0) for p in phases) / lengths for name in (TRAINING, WAITING))
        text += f". Averaged over sites and {run.period}s, {trained:.0%} of a {run.period} was spent training "
        text += f"and {waited:.0%} waiting {'in queues' if run.timeline.queued else 'for a worker'}"
    return text + "."


def graph_caption(graph: RoundGraph) -> str:
    """Return the caption of the graph of a round."""
    return (
        f"The tasks behind model {graph.aggregate.version} as they ran: each box is one call of a Parsl app with its "
        "run time and the bytes that it moved or wrote, each arrow a result that the next call took. What "
        "sites do once, before round 1, is left out."
    )

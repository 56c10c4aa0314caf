"""The page of a report: its tables and its HTML."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflows.figure_style import GLOBAL
from workflows.findings import Findings, Run
from workflows.report_words import NONE, big_numbers, lead_text, loss_text, subtitle
from workflows.timeline import (
    STAGING_IN,
    STAGING_OUT,
    TRAINING,
    WAITING,
    idle_share,
    moves,
    round_lengths,
    task_runs,
    trainings,
)
from workflows.units import bytes_text, seconds_text


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; `note` says how to read them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def round_table(run: Run) -> Table:
    """One row per round that was scored or begun."""
    tasks, lengths, means = task_runs(run.journal), round_lengths(run.timeline), run.mean_losses
    used = {e.get("version"): len(e.get("weights") or {}) for e in run.journal.named("aggregated")}
    tokens: Counter[int] = Counter()
    nbytes: Counter[tuple[int, bool]] = Counter()
    for task in trainings(tasks):
        tokens[task.round] += int(task.result.get("tokens") or 0)
    for move in moves(tasks):
        nbytes[move.round, move.out] += move.nbytes
    rows = []
    for number in sorted({*map(int, means.index), *lengths}):
        losses = means.loc[number].dropna() if number in means.index else {}
        sites = {site: losses[site] for site in run.sites if site in losses}
        best = min(sites, key=sites.__getitem__, default=None)
        cells = [str(number), loss_text(losses.get(GLOBAL)), f"{loss_text(sites[best])} {best}" if best else NONE]
        cells += [str(used.get(number, NONE)), f"{tokens[number]:,}"]
        cells += [bytes_text(nbytes[number, out]) for out in (True, False)]
        rows.append([*cells, seconds_text(lengths[number]) if number in lengths else NONE])
    columns = ("round", "global loss", "best site", "updates used", "tokens", "bytes out", "bytes in")
    note = "Losses are unweighted means over the tasks; round 0 is untrained."
    return Table("Rounds", (*columns, "length"), rows, note)


def task_table(run: Run) -> Table:
    """Final losses by task; the owner is the site whose data hold the task."""
    final = run.final_losses
    rows = [
        [task, ", ".join(run.owners[task]) or NONE, *(loss_text(value) for value in losses)]
        for task, losses in final.iterrows()
    ]
    return Table("Final loss by task", ("task", "owner", *run.models), rows, "The last score of each model.")


def site_table(run: Run) -> Table:
    """One row per site: what it holds, what it did, where its time went."""
    tasks, timeline, rows = task_runs(run.journal), run.timeline, []
    for site in run.sites:
        entry = run.campaign["sites"][site] or {}
        trained = [task.result for task in trainings(tasks) if task.site == site]
        counted = ("samples", "tokens", "steps_done")
        sums = [sum(int(result.get(key) or 0) for result in trained) for key in counted]
        spent = [timeline.seconds(site, p) for p in (TRAINING, WAITING)]
        spent.append(timeline.seconds(site, STAGING_OUT, STAGING_IN))
        held = sum(site in owners for owners in run.owners.values())
        cells = [site, str(entry.get("config") or site), str(held), str(len(trained))]
        cells += [f"{value:,}" for value in sums] + [f"{seconds:,.0f}" for seconds in spent]
        rows.append([*cells, f"{idle_share(timeline, site):.0%}"])
    columns = ("site", "config", "tasks", "rounds", "samples", "tokens", "steps", "training [s]", "queue [s]")
    note = "Idle: the share of the time with a driver in which the site neither moved, waited nor trained."
    return Table("Sites", (*columns, "staging [s]", "idle"), rows, note)


def trouble_table(run: Run) -> Table | None:
    """Failed tasks and refused updates in the order of the journal; None when there were none."""
    names = {"task_failed": "task failed", "update_refused": "update refused"}
    opened = run.journal.events[0]["time"] if run.journal.events else 0.0
    rows = []
    for event in run.journal.events:
        if event["event"] in names:
            words = [str(event[key]) for key in ("app", "error", "message", "reason") if event.get(key)]
            when = seconds_text(event["time"] - opened)
            cells = [when, str(event.get("round", NONE)), str(event.get("site", NONE)), names[event["event"]]]
            rows.append([*cells, ": ".join(words)])
    columns = ("after", "round", "site", "what", "why")
    return Table("Refused updates and failures", columns, rows) if rows else None


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: campaign report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f5f7f9;
  --page: #fff; --warn: #8a4b00; --warnpage: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #a3adb8; --line: #3a424b;
  --card: #22272d; --page: #181b1f; --warn: #ffcf8a; --warnpage: #3a2c14; } }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--page); max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; }
p { margin: .4rem 0; max-width: 56rem; } .soft, figcaption { color: var(--soft); }
.lead { font-size: 1.1rem; }
.warn { color: var(--warn); background: var(--warnpage); padding: .5rem .8rem; border-radius: .4rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.numbers div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.numbers b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; margin: .3rem auto; background: #fff; border-radius: .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .text th, .text td { text-align: left; } thead th { color: var(--soft); }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --card: #f4f4f4;
  --page: #fff; --warn: #000; --warnpage: #eee; }
  body { font-size: 11px; max-width: none; padding: 0; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .wide { overflow: visible; } }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p class="soft">{{ subtitle }}</p>
{% if not found.finished %}
<p class="warn">This campaign is {{ found.state }}. The report shows what is there.</p>
{% endif %}
{% for note in notes %}<p class="warn">{{ note }}</p>
{% endfor %}
<p class="lead">{{ lead }}</p>
<div class="numbers">
{% for value, label in numbers %}<div><b>{{ value }}</b><span class="soft">{{ label }}</span></div>
{% endfor %}</div>
{% for title, caption, image in pictures %}
<h2>{{ title }}</h2>
<figure><img alt="{{ title }}" src="data:image/png;base64,{{ image }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
{% if table.note %}<p class="soft">{{ table.note }}</p>{% endif %}
<div class="wide"><table{% if table.title.startswith("Refused") %} class="text"{% endif %}>
<thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<details><summary>Campaign settings</summary><pre>{{ campaign }}</pre></details>
<details><summary>Environment</summary><pre>{{ environment }}</pre></details>
</body>
</html>
"""


def page(run: Run, found: Findings, pictures: Sequence[tuple[str, str, Path]]) -> str:
    """The whole page as text, pictures inside; everything that comes from the run is escaped."""
    import jinja2

    images = [(t, c, base64.b64encode(path.read_bytes()).decode("ascii")) for t, c, path in pictures]
    tables = [trouble_table(run), round_table(run), task_table(run), site_table(run)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        name=run.campaign.get("name") or run.directory.name,
        subtitle=subtitle(run),
        found=found,
        lead=lead_text(run, found),
        numbers=big_numbers(run, found),
        pictures=images,
        tables=[table for table in tables if table is not None and table.rows],
        notes=run.notes,
        campaign=run.campaign_text,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )

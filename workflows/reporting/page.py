"""The page of a report: its tables and its HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from workflows.reporting.batch_jobs import block_text, job_table, sum_table
from workflows.reporting.captions import big_numbers, lead_text, subtitle
from workflows.reporting.run_summary import RunRecord, RunSummary
from workflows.reporting.tables import round_table, site_table, task_table, trouble_table, update_table

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
th:first-child, td:first-child, .text th, .text td,
.remarks th:last-child, .remarks td:last-child { text-align: left; } thead th { color: var(--soft); }
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
{% if blocks %}<p>{{ blocks }}</p>
{% endif %}
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
<div class="wide"><table{% if table.look %} class="{{ table.look }}"{% endif %}>
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


def page(run: RunRecord, found: RunSummary, pictures: Sequence[tuple[str, str, Path]]) -> str:
    """The whole page as text, pictures inside; everything that comes from the run is escaped."""
    import jinja2

    images = [(t, c, base64.b64encode(path.read_bytes()).decode("ascii")) for t, c, path in pictures]
    tables = [trouble_table(run), round_table(run), update_table(run), task_table(run), site_table(run)]
    tables += [sum_table(run), job_table(run)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        name=run.campaign.get("name") or run.directory.name,
        subtitle=subtitle(run),
        found=found,
        lead=lead_text(run, found),
        blocks=block_text(run),
        numbers=big_numbers(run, found),
        pictures=images,
        tables=[table for table in tables if table is not None and table.rows],
        notes=run.notes,
        campaign=run.campaign_text,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )

"""The HTML page of the report; its template is ``page.html.j2`` beside this file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from workflows.reporting.batch_jobs import block_text, job_table, sum_table
from workflows.reporting.captions import big_numbers, lead_text, subtitle
from workflows.reporting.run_record import RunRecord
from workflows.reporting.run_summary import RunSummary
from workflows.reporting.tables import problem_table, round_table, site_table, task_table, update_table
from workflows.reporting.work_tables import block_time_table, cut_table

TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(
    run: RunRecord, summary: RunSummary, pictures: Sequence[tuple[str, str, Path]], notes: Sequence[str] = ()
) -> str:
    """Return the whole page with its pictures inside; every value from the run is escaped.

    Args:
        run: as read from its directory.
        summary: of the run.
        pictures: title, caption and PNG file of each picture.
        notes: about pictures that could not be drawn.
    """
    import jinja2

    images = [(t, c, base64.b64encode(path.read_bytes()).decode("ascii")) for t, c, path in pictures]
    tables = [problem_table(run), round_table(run), update_table(run), task_table(run), site_table(run)]
    tables += [block_time_table(run), cut_table(run), sum_table(run), job_table(run)]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.campaign.get("name") or run.directory.name,
        subtitle=subtitle(run),
        summary=summary,
        lead=lead_text(run, summary),
        blocks=block_text(run),
        numbers=big_numbers(run, summary),
        pictures=images,
        tables=[table for table in tables if table is not None and table.rows],
        notes=(*run.notes, *notes),
        campaign=run.campaign_text,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )

"""The journal's records of sites that have enrolled: their samples, and how many of them are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflows.console.units import plural
from workflows.records.journal import Journal, Record


def record_enrolment(journal: Journal, site: str, shard: Mapping[str, Any], max_tokens: int) -> None:
    """Write the record ``enrolled`` of a site; the same shard is recorded once.

    Args:
        journal: of the run.
        site: name of the site.
        shard: the enrol result.
        max_tokens: limit of a sample.
    """
    known = (
        record["site"] == site and record["shard"] == shard["shard_sha256"] for record in journal.events("enrolled")
    )
    if not any(known):
        counts = {key: shard[key] for key in ("samples", "per_task", "cut")}
        journal.write("enrolled", site=site, shard=shard["shard_sha256"], max_tokens=max_tokens, **counts)


def cut_text(record: Record) -> str | None:
    """Return a record ``enrolled`` as a line on the samples that are cut; None without any."""
    if not record["cut"]:
        return None
    tasks = [
        f"{task}: {' and '.join(plural(number, part) for part, number in cuts.items() if number)}"
        f" of {plural(record['per_task'][task], 'sample')}"
        for task, cuts in record["cut"].items()
    ]
    return f"site {record['site']}: longer than data.max_tokens ({record['max_tokens']}) and cut: {'; '.join(tasks)}"

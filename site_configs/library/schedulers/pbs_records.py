"""Read the job records that qstat prints, as text or as JSON, whatever a job's own variables do to them.

qstat prints the environment that a job was submitted with. Several versions print it as invalid JSON: exported shell
functions with quotes and line breaks, values such as 005, control characters (reported for ``qsub -V`` under OpenPBS
19 and 20). One such job must not hide the others, or itself: what follows a job's
name, state and queue is read if it can be. Text is folded after 78 characters: a line that begins with a tab continues
the one before (``prt_attr`` of OpenPBS' qstat.c).
"""

from __future__ import annotations

import json
import re
from typing import Any

Record = dict[str, Any]  # attributes of a job, with those of resources as mappings

JOB_ID = re.compile(r"^\d+(?:\[\d*\])?(?:\.\S+)?$")
TEXT_HEAD = re.compile(r"^Job Id: *(\S+)[^\n]*\n", re.MULTILINE)
TEXT_LINE = re.compile(r"^ {4}(\w+)(?:\.(\w+))? = ?(.*)$")
JSON_HEAD = re.compile(r'"(\d+(?:\[\d*\])?(?:\.[^"\s]*)?)"\s*:\s*\{')
JSON_TEXT = r'"((?:[^"\\\n]|\\.)*)(?:"|\n|\Z)'  # a value may be cut off
SCALARS = (
    *("Job_Name", "Job_Owner", "job_state", "queue", "ctime", "stime", "obittime", "history_timestamp"),
    *("substate", "Exit_status", "comment"),
)
GROUPS = ("Resource_List", "resources_used", "estimated")


def job_number(job_id: str) -> str:
    """Return a job's number: what follows it, the name of the server, is printed shorter or longer at times."""
    return job_id.split(".")[0]


def job_ids(text: str) -> list[str]:
    """Return the ids that qselect printed, one a line; other lines, such as a message of the day, are left out."""
    return [line.strip() for line in text.splitlines() if JOB_ID.match(line.strip())]


def read_records(text: str) -> dict[str, Record]:
    """Return the attributes of each job in the output of ``qstat -f``, by the number in its id."""
    found = TEXT_HEAD.search(text)
    if found and '"Jobs"' not in text[: found.start()]:
        return _from_text(text)
    return _from_json(text)


def read_json(text: str) -> dict[str, Any]:
    """Return the JSON object in an output, which may have other lines before and after it; empty if there is none."""
    for found in re.finditer(r"^\s*\{", text, re.MULTILINE):
        try:
            content, _ = json.JSONDecoder(strict=False).raw_decode(text, found.end() - 1)
        except ValueError:
            continue
        return content if isinstance(content, dict) else {}
    return {}


def _from_text(text: str) -> dict[str, Record]:
    pieces = TEXT_HEAD.split(text.replace("\n\t", ""))[1:]
    records: dict[str, Record] = {}
    for job_id, lines in zip(pieces[::2], pieces[1::2], strict=True):
        records.setdefault(job_number(job_id), _text_record(lines))
    return records


def _text_record(lines: str) -> Record:
    """Return the attributes of one job; of those that are printed twice, as a variable may make it look, the first."""
    record: Record = {}
    for key, part, value in filter(None, (_text_attribute(line) for line in lines.splitlines())):
        if part and isinstance(group := record.setdefault(key, {}), dict):
            group.setdefault(part, value)
        elif not part:
            record.setdefault(key, value)
    return record


def _text_attribute(line: str) -> tuple[str, str | None, str] | None:
    found = TEXT_LINE.match(line)
    return (found[1], found[2], found[3].strip()) if found else None


def _from_json(text: str) -> dict[str, Record]:
    jobs = read_json(text).get("Jobs", {})
    if jobs and isinstance(jobs, dict):
        return {job_number(job_id): record for job_id, record in jobs.items() if isinstance(record, dict)}
    pieces = JSON_HEAD.split(text)[1:]
    records: dict[str, Record] = {}
    for job_id, body in zip(pieces[::2], pieces[1::2], strict=True):
        records.setdefault(job_number(job_id), _broken_record(body))
    return records


def _broken_record(body: str) -> Record:
    """Return what can be read of one job whose JSON is invalid or cut off."""
    outer = body
    record: Record = {}
    for group in GROUPS:
        if found := re.search(rf'"{group}"\s*:\s*\{{([^{{}}]*)\}}', body):
            record[group] = dict(re.findall(rf'"(\w+)"\s*:\s*(?:(?=")){JSON_TEXT}', found[1]))
            record[group] |= dict(re.findall(r'"(\w+)"\s*:\s*(-?\d+)', found[1]))
            outer = outer.replace(found[0], "")
    for name in SCALARS:
        if found := re.search(rf'"{name}"\s*:\s*(?:{JSON_TEXT}|(-?\d+))', outer):
            is_whole = found[2] is not None or found[0].endswith('"')
            record[name if is_whole else f"{name} begins"] = found[1] if found[2] is None else int(found[2])
    return record


def may_be_named(record: Record, token: str) -> bool:
    """Return True if a job's name contains a text, or if too little of its record can be read to say that it does not.

    Args:
        record: attributes of the job.
        token: the beginning of a name, or the whole of it.
    """
    if name := record.get("Job_Name"):
        return token in str(name)
    begins = str(record.get("Job_Name begins", ""))
    return token.startswith(begins) or begins.startswith(token)

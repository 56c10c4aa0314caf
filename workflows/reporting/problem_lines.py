"""Records of problems as lines for the terminal."""

from __future__ import annotations

from workflows.console.units import plural
from workflows.planning.labels import shown_name
from workflows.records.batch_jobs import LOST_ENDINGS
from workflows.records.enrolments import cut_text
from workflows.records.failed_blocks import failure_text
from workflows.records.journal import Record

PROBLEMS = (
    *(
        "update_refused",
        "update_put_aside",
        "update_clipped",
        "task_failed",
        "block_replaced",
        "block_failed",
        "block_waits",
    ),
    *("blocks_left", "executor_replaced", "site_held", "start_slow"),
)
GLOBUS_PROBLEMS = (
    "compute_unreachable",
    "compute_back",
    "compute_asked_again",
    "endpoint_status",
    "transfer_unreachable",
    "transfer_back",
    "transfer_trouble",
)


def problem_text(record: Record) -> str | None:
    """Return one line about a record of a problem; None for other records."""
    if record["event"] == "block_ended":
        return block_problem(record)
    if record["event"] == "enrolled":
        return cut_text(record)
    if record["event"] == "blocks_cancelled":
        jobs = plural(len(record["job_ids"]), "job")
        return f"{shown_name(record['site'])}: {jobs} of an earlier driver cancelled: {', '.join(record['job_ids'])}"
    if record["event"] in GLOBUS_PROBLEMS:
        return globus_problem(record)
    if record["event"] == "site_waits":
        what = f"round {record['round']}" if record["round"] else "the start"
        return f"{what} waits for {shown_name(record['site'])}: {record['reason']}"
    if record["event"] == "site_back":
        return f"{shown_name(record['site'])}: works again"
    if record["event"] not in PROBLEMS:
        return None
    reason: str = failure_text(record) if record["event"] == "block_failed" else record["reason"]
    name = shown_name(record["site"])
    return reason if reason.startswith((f"site {name}", f"{name}: ", f"{name}, ")) else f"{name}: {reason}"


def block_problem(record: Record) -> str | None:
    """Return one line about a batch job that ended without this campaign's request; None for other ends."""
    block = f"{shown_name(record['site'])}: block {record['job_id']}"
    reason = f" ({record['reason']})" if record["reason"] else ""
    if record["state"] in LOST_ENDINGS:
        return f"{block} has ended: {record['state'].replace('_', ' ')}{reason}"
    worthy = record["state"] in ("cancelled", "unknown") or record.get("busy")
    if not worthy or record.get("asked") is not False:
        return None
    end = "was cancelled, not by this campaign" if record["state"] == "cancelled" else "has ended"
    end += f", {record['state']}, with work on it" if record["state"] == "completed" else ""
    end += reason
    follow_up = (
        "its work continues in the next block" if record["started"] else "it was still queued; a new one follows"
    )
    return f"{block} {end}; {follow_up}"


def globus_problem(record: Record) -> str | None:
    """Return one line about a failure, or recovery, of a Globus service or endpoint."""
    match record["event"]:
        case "compute_unreachable" | "transfer_unreachable":
            service = "Compute" if record["event"].startswith("compute") else "Transfer"
            return f"Globus {service} does not answer: {record['reason']}; work at the sites continues"
        case "compute_back" | "transfer_back":
            return f"Globus {'Compute' if record['event'].startswith('compute') else 'Transfer'} answers again"
        case "endpoint_status":
            return f"{record['site']}: its endpoint is {record['status']}"
        case "compute_asked_again":
            return f"{record['site']}: call repeated, {record['reason']}"
        case "transfer_trouble":
            transfer = "sending the model" if record["direction"] == "send" else "fetching the update"
            return f"{record['site']}: {transfer}: {record['reason']}"
    return None

"""One Globus transfer: handed in so that it runs once, and followed to an end that was looked at.

The client's own ``task_wait`` only tells that a task is not active any more, which is also so for one that failed.
Here the task's status decides, and what moved between two looks tells a slow transfer from one that stands still.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from workflows.globus.transfer.calls import RetryingClient, driver_stopped
from workflows.globus.transfer.errors import TransferCanceled, TransferFailed

if TYPE_CHECKING:
    from globus_sdk import DeleteData, TransferData

LABEL_LENGTH = 128
WELL = ("OK", "Queued")  # what ``nice_status`` says while nothing is wrong
MOVED = ("bytes_transferred", "files_transferred", "files_skipped")
POLL_SHARE = 0.2  # of its age: when a transfer is looked at again
Task = Mapping[str, Any]
OnLook = Callable[[Task, str | None], None]


@dataclass(frozen=True)
class TransferRequest:
    """What one transfer moves, packed: many files, one task.

    Attributes:
        source, destination: ids of the collections.
        files: (path at the source, path at the destination), as the collections name them.
        label: for people who look at their transfers.
        deadline_s: after so long Globus gives up.
    """

    source: str
    destination: str
    files: tuple[tuple[str, str], ...]
    label: str
    deadline_s: float = 3 * 24 * 3600.0


@dataclass(frozen=True)
class TransferResult:
    """How a transfer has ended well; ``missing`` are the paths that its source could not give."""

    nbytes: int
    faults: int
    missing: tuple[str, ...] = ()


def new_submission_id(caller: RetryingClient) -> str:
    """A name under which a transfer may be handed in any number of times and runs once."""
    return str(caller(lambda client: client.get_submission_id())["value"])


def submit(caller: RetryingClient, parcel: TransferRequest, submission_id: str) -> str:
    """Hand in a transfer; the id of its task, also where it had been handed in before."""
    data = _transfer_data(parcel, submission_id)
    return str(caller(lambda client: client.submit_transfer(data))["task_id"])


def delete(caller: RetryingClient, collection: str, paths: tuple[str, ...], label: str, deadline_s: float) -> str:
    """Hand in the deletion of files, gone already or not; the id of its task."""
    data = _delete_data(collection, paths, label, new_submission_id(caller), deadline_s)
    return str(caller(lambda client: client.submit_delete(data))["task_id"])


def _transfer_data(parcel: TransferRequest, submission_id: str) -> TransferData:
    from globus_sdk import TransferData

    data = TransferData(
        parcel.source,
        parcel.destination,
        label=clean_label(parcel.label),
        submission_id=submission_id,
        deadline=_in_seconds(parcel.deadline_s),
        verify_checksum=True,
        fail_on_quota_errors=True,
        skip_source_errors=True,  # a file that is not there would hold up the task until its deadline
        notify_on_succeeded=False,
        notify_on_failed=False,
        notify_on_inactive=False,
    )
    for source, destination in parcel.files:
        data.add_item(source, destination)
    return data


def _delete_data(
    collection: str, paths: tuple[str, ...], label: str, submission_id: str, deadline_s: float
) -> DeleteData:
    from globus_sdk import DeleteData

    data = DeleteData(
        collection,
        label=clean_label(label),
        submission_id=submission_id,
        deadline=_in_seconds(deadline_s),
        ignore_missing=True,
        notify_on_succeeded=False,
        notify_on_failed=False,
        notify_on_inactive=False,
    )
    for path in paths:
        data.add_item(path)
    return data


def _in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def clean_label(text: str) -> str:
    """A label of the characters that Globus admits: letters, digits, blank, ``-``, ``_`` and comma."""
    return re.sub(r"[^A-Za-z0-9 ,_-]", "_", text)[:LABEL_LENGTH]


def follow(caller: RetryingClient, task_id: str, on_look: OnLook) -> TransferResult:
    """Wait for a task's end.

    A task that is inactive (only expired credentials make it so) or has faults is waited for: Globus goes on with it
    by itself once that is mended.

    Args:
        caller: makes the calls; its patience tells how often.
        task_id: of the task.
        on_look: told after each look what the service says of the task, and what holds it up, or None.

    Raises:
        TransferFailed: it has failed, was overdue, or stood still for too long and was cancelled.
        TransferCanceled: somebody has cancelled it.
        TransferLeft: the driver stops; the task goes on.
    """
    began = moved_at = time.monotonic()
    moved: tuple[int, ...] = ()
    while True:
        task: Task = caller(lambda client: client.get_task(task_id)).data
        before, moved = moved, tuple(int(task.get(key) or 0) for key in MOVED)
        trouble = trouble_of(task)
        on_look(task, trouble)
        if task["status"] == "SUCCEEDED":
            return _outcome(caller, task)
        if task["status"] == "FAILED":
            raise _failure(caller, task)
        now = time.monotonic()
        if moved != before or trouble is None or task["status"] == "INACTIVE":
            moved_at = now
        if now - moved_at > caller.patience.stall_s:
            raise _given_up(caller, task_id, f"has moved nothing for {now - moved_at:,.0f} s: {trouble}")
        if _overdue_s(task) > caller.patience.overdue_s:
            raise _given_up(caller, task_id, f"is past its deadline: {trouble or task['status']}")
        if caller.stop.wait(_pause_s(caller, now - began)):
            raise driver_stopped()


def _pause_s(caller: RetryingClient, age_s: float) -> float:
    return min(max(caller.patience.poll_s, POLL_SHARE * age_s), caller.patience.slowest_poll_s)


def trouble_of(task: Task) -> str | None:
    """What holds up a task, in Globus' words and with a remedy where a person has to do something."""
    state = task.get("nice_status")
    if task["status"] in ("SUCCEEDED", "FAILED") or (task["status"] == "ACTIVE" and (not state or state in WELL)):
        return None
    details = task.get("nice_status_details") or task.get("nice_status_short_description")
    words = f"{state}: {details}" if details and details != state else str(state)
    if task["status"] != "INACTIVE":
        return words
    page = f"https://app.globus.org/activity/{task['task_id']}"
    return f"{words}. Renew the collection's credentials at {page}; the transfer then goes on"


def _overdue_s(task: Task) -> float:
    deadline = task.get("deadline")
    return time.time() - datetime.fromisoformat(deadline).timestamp() if deadline else 0.0


def _outcome(caller: RetryingClient, task: Task) -> TransferResult:
    missing: tuple[str, ...] = ()
    if task.get("subtasks_skipped_errors"):
        rows = caller(lambda client: client.task_skipped_errors(task["task_id"]))
        missing = tuple(str(row["source_path"]) for row in rows["DATA"])
    return TransferResult(int(task.get("bytes_transferred") or 0), int(task.get("faults") or 0), missing)


def _failure(caller: RetryingClient, task: Task) -> TransferFailed:
    """Why a task has failed, with the last thing that went wrong before."""
    fatal = task.get("fatal_error") or {}
    code, reason = fatal.get("code", "no reason given"), fatal.get("description", "")
    what = f"Globus transfer {task['task_id']} failed: {': '.join(part for part in (code, reason) if part)}"
    event = _last_error(caller, str(task["task_id"]))
    if event and event not in what:
        what += f"; last: {event}"
    if "CANCEL" in code:
        return TransferCanceled(what, remedy="Resume to have it done again")
    return TransferFailed(what)


def _last_error(caller: RetryingClient, task_id: str) -> str | None:
    events = caller(lambda client: client.task_event_list(task_id, limit=100))["DATA"]  # newest first
    return next((f"{event['code']}: {event['details']}"[:200] for event in events if event["is_error"]), None)


def _given_up(caller: RetryingClient, task_id: str, reason: str) -> TransferFailed:
    """Cancel a task, so that nothing is written any more where the next attempt writes."""
    caller(lambda client: client.cancel_task(task_id))
    return TransferFailed(f"Globus transfer {task_id} {reason}")

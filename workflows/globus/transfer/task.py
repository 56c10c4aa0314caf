"""One task of Globus Transfer: submitted so that it runs once, and followed to a verified end.

The client's own ``task_wait`` only reports that a task is not active any more, which is also true for a failed one.
Here the task's status decides, and the bytes moved between two status requests separate a slow transfer from a stalled
one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apps.base.errors import ArtifactError, CrossfedError
from workflows.globus.transfer.calls import Backoff, RetryingClient, driver_stopped
from workflows.globus.transfer.errors import TransferCanceled, TransferFailed, TransferPostponed
from workflows.globus.transfer.sizes import most_moved

if TYPE_CHECKING:
    from globus_sdk import DeleteData, TransferData

LABEL_LENGTH = 128
DEADLINE_S = 3 * 24 * 3600.0
HEALTHY = ("OK", "Queued")  # values of ``nice_status`` without trouble
COUNTERS = ("bytes_transferred", "files_transferred", "files_skipped")
FINAL = ("SUCCEEDED", "FAILED")
STOP_POLL_S = 0.1  # how soon a waiting thread notices that the driver stops
CANCEL_S = 30.0  # that a cancelled task may take to end
POLL_SHARE = 0.2  # interval of status requests, as a share of a transfer's age
NO_MAILS: dict[str, Any] = {"notify_on_succeeded": False, "notify_on_failed": False, "notify_on_inactive": False}
Task = Mapping[str, Any]
OnStatus = Callable[[Task, str | None], None]


@dataclass(frozen=True)
class TransferRequest:
    """Content of one transfer: many files, one task.

    Attributes:
        source, destination: ids of the collections.
        files: (path at the source, path at the destination), as the collections name them.
        label: for a person's list of transfers.
        deadline_s: Globus gives up after so long.
        nbytes: of the files, as announced; None: of our own, whose size is known.
    """

    source: str
    destination: str
    files: tuple[tuple[str, str], ...]
    label: str
    deadline_s: float = DEADLINE_S
    nbytes: int | None = None


@dataclass(frozen=True)
class TransferResult:
    """Result of a transfer that succeeded; ``missing`` are the paths that its source does not have."""

    nbytes: int
    faults: int
    missing: tuple[str, ...] = ()


def new_submission_id(caller: RetryingClient) -> str:
    """Return an id under which a transfer may be submitted any number of times and runs once."""
    return str(caller(lambda client: client.get_submission_id())["value"])


def submit(caller: RetryingClient, request: TransferRequest, submission_id: str) -> str:
    """Submit a transfer and return the id of its task, also if it had been submitted before."""
    data = _transfer_data(request, submission_id)
    return str(caller(lambda client: client.submit_transfer(data))["task_id"])


def delete(
    caller: RetryingClient,
    collection: str,
    paths: tuple[str, ...],
    label: str,
    deadline_s: float = DEADLINE_S,
    recursive: bool = False,
) -> str:
    """Submit the deletion of files (``recursive``: also of folders), existing or not, and return the id of its task."""
    data = _delete_data(collection, label, new_submission_id(caller), deadline_s, recursive)
    for path in paths:
        data.add_item(path)
    return str(caller(lambda client: client.submit_delete(data))["task_id"])


def _transfer_data(request: TransferRequest, submission_id: str) -> TransferData:
    from globus_sdk import TransferData

    data = TransferData(
        request.source,
        request.destination,
        label=clean_label(request.label),
        submission_id=submission_id,
        deadline=_in_seconds(request.deadline_s),
        verify_checksum=True,
        encrypt_data=True,  # without it the data channel is in clear wherever the collections do not force TLS
        fail_on_quota_errors=True,
        skip_source_errors=True,  # a missing file would hold up the task until its deadline
        **NO_MAILS,
    )
    for source, destination in request.files:
        data.add_item(source, destination)
    return data


def _delete_data(collection: str, label: str, submission_id: str, deadline_s: float, recursive: bool) -> DeleteData:
    from globus_sdk import DeleteData

    return DeleteData(
        collection,
        label=clean_label(label),
        submission_id=submission_id,
        deadline=_in_seconds(deadline_s),
        recursive=recursive,
        ignore_missing=True,
        **NO_MAILS,
    )


def _in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def clean_label(text: str) -> str:
    """Return a label of the characters that Globus admits: letters, digits, blank, ``-``, ``_`` and comma."""
    return re.sub(r"[^A-Za-z0-9 ,_-]", "_", text)[:LABEL_LENGTH]


class TaskHistory:
    """How a task moves, from its successive states.

    Args:
        stalled_s: for how long earlier tasks of the same attempt had moved nothing.
        nbytes: of its files, as announced; None: not known.
    """

    def __init__(self, stalled_s: float = 0.0, nbytes: int | None = None) -> None:
        now, self.nbytes = time.monotonic(), nbytes
        self.before_s, self.began, self.fine_at = stalled_s, now, now
        self.counted_at = now  # until then it moved, or was inactive: not counted as stalled
        self.moved: tuple[int, ...] = (0,) * len(COUNTERS)
        self.worked_s = 0.0  # from its start to its last movement

    def update(self, task: Task, now: float) -> None:
        """Take a state of the task."""
        before, self.moved = self.moved, tuple(int(task.get(key) or 0) for key in COUNTERS)
        if self.moved != before:
            self.worked_s, self.before_s = now - self.began, 0.0
        fine = self.moved != before or trouble_of(task) is None
        if fine:
            self.fine_at = now
        if fine or task["status"] == "INACTIVE":
            self.counted_at = now

    def stalled_s(self, now: float) -> float:
        """Return for how long it has had faults and moved nothing, with the time before; not while it is inactive."""
        return self.before_s + now - self.counted_at

    def in_vain(self, now: float) -> bool:
        """Return True if it has been in trouble for longer than it had worked before."""
        return now - self.fine_at > self.worked_s


def follow(
    caller: RetryingClient,
    task_id: str,
    on_status: OnStatus,
    states: Iterator[Task] | None = None,
    history: TaskHistory | None = None,
    postponed: Callable[[TaskHistory], bool] = lambda _: False,
    cancelling: Callable[[], object] = lambda: None,
) -> TransferResult:
    """Wait for a task's end.

    A task that is inactive (only expired credentials make it so) or has faults is waited for: Globus continues by
    itself once that is repaired.

    Args:
        caller: makes the calls; its ``backoff`` has the intervals.
        task_id: of the task.
        on_status: called after each status request with the task and its trouble, or None.
        states: of the task; default: requests them.
        history: is kept up to date.
        postponed: returns True to have the task cancelled because others wait.
        cancelling: called before the task is cancelled.

    Raises:
        TransferFailed: it has failed, was overdue, or stalled for too long and was cancelled.
        ArtifactError: it has moved more than was announced, and was cancelled.
        TransferPostponed: it was cancelled because others wait.
        TransferCanceled: a person has cancelled it.
        TransferDetached: the driver stops; the task continues.
    """
    history = history or TaskHistory()
    for task in states or _polled(caller, task_id):
        now = time.monotonic()
        history.update(task, now)
        trouble = trouble_of(task)
        on_status(task, trouble)
        if task["status"] in FINAL:
            return _ended(caller, task)
        error: CrossfedError | None = _reason_to_cancel(caller.backoff, task, trouble, history.stalled_s(now))
        error = error or _moves_too_much(task, history.nbytes)
        if error is None and trouble and postponed(history):
            error = TransferPostponed(f"Globus transfer {task_id} stalls while others wait: {trouble}")
        if error:
            cancelling()
            last = cancel(caller, task_id)
            if last["status"] == "SUCCEEDED":
                return _ended(caller, last)
            raise error
    raise AssertionError("states do not end by themselves")


def _polled(caller: RetryingClient, task_id: str) -> Iterator[Task]:
    began = time.monotonic()
    while True:
        yield caller(lambda client: client.get_task(task_id)).data
        if caller.stop.wait(pause_s(caller.backoff, time.monotonic() - began)):
            raise driver_stopped()


def pause_s(backoff: Backoff, age_s: float) -> float:
    """Return the seconds between two requests for the state of a transfer of an age."""
    return min(max(backoff.poll_s, POLL_SHARE * age_s), backoff.slowest_poll_s)


def _reason_to_cancel(backoff: Backoff, task: Task, trouble: str | None, stalled_s: float) -> TransferFailed | None:
    reason = None
    if stalled_s > backoff.stall_s:
        reason = f"has moved nothing for {stalled_s:,.0f} s: {trouble}"
    elif _overdue_s(task) > backoff.overdue_s:
        reason = f"is past its deadline: {trouble or task['status']}"
    return TransferFailed(f"Globus transfer {task['task_id']} {reason}") if reason else None


def _moves_too_much(task: Task, nbytes: int | None) -> ArtifactError | None:
    moved = int(task.get("bytes_transferred") or 0)
    if nbytes is None or moved <= most_moved(nbytes, int(task.get("faults") or 0)):
        return None
    return ArtifactError(f"Globus transfer {task['task_id']} has moved {moved:,} bytes, {nbytes:,} were announced")


def trouble_of(task: Task) -> str | None:
    """Return what delays a task as Globus names it, with a remedy where a person has to act; None: nothing."""
    state = task.get("nice_status")
    if task["status"] in ("SUCCEEDED", "FAILED") or (task["status"] == "ACTIVE" and (not state or state in HEALTHY)):
        return None
    details = task.get("nice_status_details") or task.get("nice_status_short_description")
    text = f"{state}: {details}" if details and details != state else str(state)
    if task["status"] != "INACTIVE":
        return text
    page = f"https://app.globus.org/activity/{task['task_id']}"
    return f"{text}. Renew the collection's credentials at {page}; the transfer then continues"


def _overdue_s(task: Task) -> float:
    deadline = task.get("deadline")
    return time.time() - datetime.fromisoformat(deadline).timestamp() if deadline else 0.0


def _ended(caller: RetryingClient, task: Task) -> TransferResult:
    """Return the result of a task that has ended, or raise its error."""
    if task["status"] == "FAILED":
        raise _failure(caller, task)
    missing: tuple[str, ...] = ()
    if task.get("subtasks_skipped_errors"):
        rows = caller(lambda client: client.task_skipped_errors(task["task_id"]))
        missing = tuple(str(row["source_path"]) for row in rows["DATA"])
    return TransferResult(int(task.get("bytes_transferred") or 0), int(task.get("faults") or 0), missing)


def _failure(caller: RetryingClient, task: Task) -> TransferFailed:
    """Return the error of a failed task, with its last fault."""
    fatal = task.get("fatal_error") or {}
    code, reason = fatal.get("code", "no reason given"), fatal.get("description", "")
    what = f"Globus transfer {task['task_id']} failed: {': '.join(part for part in (code, reason) if part)}"
    event = _last_error(caller, str(task["task_id"]))
    if event and event not in what:
        what += f"; last: {event}"
    if "CANCEL" in code:
        return TransferCanceled(what, remedy="Resume to start it again")
    return TransferFailed(what)


def _last_error(caller: RetryingClient, task_id: str) -> str | None:
    events = caller(lambda client: client.task_event_list(task_id, limit=100))["DATA"]  # newest first
    return next((f"{event['code']}: {event['details']}"[:200] for event in events if event["is_error"]), None)


def cancel(caller: RetryingClient, task_id: str) -> Task:
    """Cancel a task, so that it writes nothing where the next attempt writes; return its last state."""
    caller(lambda client: client.cancel_task(task_id))
    until = time.monotonic() + CANCEL_S
    while True:
        task: Task = caller(lambda client: client.get_task(task_id)).data
        if task["status"] in FINAL or time.monotonic() > until:
            return task
        if caller.stop.wait(caller.backoff.poll_s):
            raise driver_stopped()

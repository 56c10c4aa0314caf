"""Records of site calls in the journal: what a new driver needs to continue where the last one stopped.

Records: ``compute_function`` {function_id, source}, ``compute_submitting`` {site, key, function}, ``compute_submitted``
{site, key, task_id, endpoint}, ``compute_ended`` {site, key, task_id, state}. Neither arguments nor secrets.
"""

from __future__ import annotations

from workflows.globus.compute.calls import Call
from workflows.globus.compute.registered import bootstrap_digest
from workflows.records.journal import Journal
from workflows.trust.schema import WorkerName, problem_of


class CallLog:
    """The calls of a run in its journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.is_forgotten = journal, False
        self.submitted_keys = {r["key"] for r in journal.events("compute_submitted")}
        ended = {r["task_id"] for r in journal.events("compute_ended")}
        # key and endpoint -> tasks that may still answer, and when they were submitted
        self.open: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for record in journal.events("compute_submitted"):
            if record["task_id"] not in ended:
                self.open.setdefault((record["key"], record["endpoint"]), []).append(
                    (record["task_id"], record["time"])
                )

    def function_id(self) -> str | None:
        """Return the id of the function that this run has used; None: none, or its text has changed since."""
        records = [r for r in self.journal.events("compute_function") if r["source"] == bootstrap_digest()]
        return None if self.is_forgotten or not records else str(records[-1]["function_id"])

    def registered(self, function_id: str) -> None:
        if function_id != self.function_id():
            self.journal.write("compute_function", function_id=function_id, source=bootstrap_digest())
        self.is_forgotten = False

    def forgotten(self) -> None:
        """Take note that the service does not know the function any more."""
        self.is_forgotten = True

    def adopt(self, call: Call) -> list[tuple[str, float]]:
        """Return tasks that an earlier driver submitted for the same call to the same endpoint, with UNIX times."""
        return self.open.pop((call.key, call.target.endpoint), []) if call.journaled else []

    def submitting(self, call: Call) -> None:
        if call.journaled:
            self.journal.write("compute_submitting", site=call.target.site, key=call.key, function=call.function)

    def submitted(self, call: Call, task_id: str) -> None:
        if call.journaled:
            target = call.target
            self.submitted_keys.add(call.key)
            self.journal.write(
                "compute_submitted", site=target.site, key=call.key, task_id=task_id, endpoint=target.endpoint
            )

    def ended(self, call: Call, task_id: str, state: str) -> None:
        if call.journaled:
            found = call.answer.get("worker") if isinstance(call.answer, dict) else None
            # host and process id of the worker that answered
            worker = {"worker": found} if problem_of(WorkerName, found) is None else {}
            self.journal.write(
                "compute_ended", site=call.target.site, key=call.key, task_id=task_id, state=state, **worker
            )

    def resubmitting(self, call: Call, reason: str) -> None:
        if call.journaled:
            self.journal.write("compute_asked_again", site=call.target.site, key=call.key, reason=reason)

    def found(self, call: Call) -> None:
        """Record that the result of a call is taken from the site's files."""
        self.journal.write("compute_found", site=call.target.site, key=call.key)

    def unreachable(self, reason: str) -> None:
        self.journal.write("compute_unreachable", reason=reason)

    def back(self, seconds: float) -> None:
        self.journal.write("compute_back", seconds=round(seconds, 1))

    def endpoint(self, site: str, endpoint: str, status: str) -> None:
        self.journal.write("endpoint_status", site=site, endpoint=endpoint, status=status)

"""What the journal knows of calls to sites: enough for a new driver to go on listening where the last one stopped.

Records: ``compute_function`` {function_id, source}, ``compute_submitting`` {site, key, function}, ``compute_submitted``
{site, key, task_id, endpoint}, ``compute_ended`` {site, key, task_id, state}. Neither arguments nor secrets.
"""

from __future__ import annotations

import hashlib

from workflows.globus.compute.calls import Call
from workflows.globus.compute.messages import bootstrap_source
from workflows.records.journal import Journal


class CallLog:
    """The calls of a run in its journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        ended = {r["task_id"] for r in journal.events("compute_ended")}
        # key and endpoint -> tasks that may still answer, and when they were submitted
        self.open: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for record in journal.events("compute_submitted"):
            if record["task_id"] not in ended:
                self.open.setdefault((record["key"], record["endpoint"]), []).append(
                    (record["task_id"], record["time"])
                )

    def function_id(self) -> str | None:
        """Under which id the service has the shipped function, if it has this very text."""
        found = [r["function_id"] for r in self.journal.events("compute_function") if r["source"] == _source_name()]
        return found[-1] if found else None

    def registered(self, function_id: str) -> None:
        self.journal.write("compute_function", function_id=function_id, source=_source_name())

    def adopt(self, job: Call) -> list[tuple[str, float]]:
        """Tasks that an earlier driver has submitted for the same call to the same endpoint, and when (UNIX time)."""
        return self.open.pop((job.key, job.target.endpoint), []) if job.journaled else []

    def submitting(self, job: Call) -> None:
        if job.journaled:
            self.journal.write("compute_submitting", site=job.target.site, key=job.key, function=job.function)

    def submitted(self, job: Call, task_id: str) -> None:
        if job.journaled:
            self.journal.write(
                "compute_submitted", site=job.target.site, key=job.key, task_id=task_id, endpoint=job.target.endpoint
            )

    def ended(self, job: Call, task_id: str, state: str) -> None:
        if job.journaled:
            told = job.answer.get("worker") if isinstance(job.answer, dict) else None
            worker = {"worker": told} if told else {}  # host and process id of who answered
            self.journal.write(
                "compute_ended", site=job.target.site, key=job.key, task_id=task_id, state=state, **worker
            )

    def asked_again(self, job: Call, reason: str) -> None:
        if job.journaled:
            self.journal.write("compute_asked_again", site=job.target.site, key=job.key, reason=reason)

    def unreachable(self, reason: str) -> None:
        self.journal.write("compute_unreachable", reason=reason)

    def back(self, seconds: float) -> None:
        self.journal.write("compute_back", seconds=round(seconds, 1))

    def endpoint(self, site: str, endpoint: str, status: str) -> None:
        self.journal.write("endpoint_status", site=site, endpoint=endpoint, status=status)


def _source_name() -> str:
    return hashlib.sha256(bootstrap_source().encode()).hexdigest()[:16]

"""Records of the campaign's transfers in the journal, so that each is submitted once, by whichever driver."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from workflows.records.journal import Journal, Record

Direction = Literal["send", "fetch"]
SUCCEEDED = "SUCCEEDED"
EVENTS = ("transfer_submitting", "transfer_submitted", "transfer_cancelling", "transfer_ended", "artifacts_cleaned")


@dataclass(frozen=True)
class Transfer:
    """One artifact to be moved to or from a site.

    Attributes:
        key: the same for equal transfers, in every driver of the run.
        site, round: whose it is.
        direction: ``send`` to the site, ``fetch`` from it.
        collection: id of the site's collection.
        artifact: SHA-256 of the artifact.
        nbytes: of the artifact.
        files: number of files in it.
    """

    key: str
    site: str
    round: int
    direction: Direction
    collection: str
    artifact: str
    nbytes: int
    files: int


@dataclass(frozen=True)
class TransferState:
    """State of one transfer over all attempts.

    Attributes:
        site: that it was started for.
        artifact, collection: as in ``Transfer``.
        fetched: True if it comes from the site.
        began: when the first attempt was to be submitted; UNIX seconds.
        submission_id: of the last attempt.
        task_id: of the last attempt; None: not known to have been submitted.
        cancelling: the driver cancels its task, to submit another.
        state: end state of the last attempt; None: not known to have ended.
        ended: when it ended; UNIX seconds.
    """

    site: str
    artifact: str
    collection: str
    fetched: bool
    began: float
    submission_id: str
    task_id: str | None = None
    cancelling: bool = False
    state: str | None = None
    ended: float = 0.0


class TransferLog:
    """The transfers of a run in its journal, by key."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._known: dict[str, TransferState] = {}
        self._lock = threading.Lock()
        for record in journal.events(*EVENTS):
            self._update(record)

    def find(self, key: str) -> TransferState | None:
        """Return the state of a transfer; None: unknown, or its artifact has been deleted since."""
        return self._known.get(key)

    def last_fetched(self, site: str, count: int = 4) -> list[str]:
        """Return the SHA-256 of the last artifacts that have arrived from a site, the latest last."""
        with self._lock:
            done = [s for s in self._known.values() if s.site == site and s.fetched and s.state == SUCCEEDED]
        return [state.artifact for state in sorted(done, key=lambda state: state.ended)[-count:]]

    def submitting(self, transfer: Transfer, submission_id: str) -> None:
        """Record a transfer before it is submitted."""
        self._write("transfer_submitting", **asdict(transfer), submission_id=submission_id)

    def submitted(self, transfer: Transfer, submission_id: str, task_id: str) -> None:
        self._write("transfer_submitted", **_place(transfer), submission_id=submission_id, task_id=task_id)

    def cancelling(self, transfer: Transfer, known: TransferState) -> None:
        """Record that a task is going to be cancelled: a later driver does not take that for the act of a person."""
        ids = {"submission_id": known.submission_id, "task_id": known.task_id}
        self._write("transfer_cancelling", **_place(transfer), **ids)

    def ended(self, transfer: Transfer, known: TransferState, state: str, **details: Any) -> TransferState:
        """Record the end of an attempt and return the new state."""
        ids = {"submission_id": known.submission_id, "task_id": known.task_id}
        self._write("transfer_ended", **_place(transfer), **ids, state=state, **details)
        return self._known[transfer.key]

    def cleaned(self, site: str, collection: str, artifacts: Collection[str]) -> None:
        """Record artifacts before they are deleted at a site: they are sent again when they are needed again."""
        self._write("artifacts_cleaned", site=site, collection=collection, artifacts=sorted(artifacts))

    def _write(self, event: str, **fields: Any) -> None:
        record = self.journal.write(event, **fields)
        with self._lock:
            self._update(record)

    def _update(self, record: Record) -> None:
        if record["event"] == "artifacts_cleaned":
            gone = set(record["artifacts"])
            here = record["collection"]
            self._known = {k: s for k, s in self._known.items() if s.collection != here or s.artifact not in gone}
        elif record["event"] == "transfer_submitting":
            self._known[record["key"]] = self._begun(record)
        elif record["key"] in self._known:
            known = self._known[record["key"]]
            later: dict[str, Any] = {"task_id": record["task_id"]}
            if record["event"] == "transfer_cancelling":
                later["cancelling"] = True
            if record["event"] == "transfer_ended":
                later |= {"state": record["state"], "ended": record["time"]}
            self._known[record["key"]] = replace(known, **later)

    def _begun(self, record: Record) -> TransferState:
        before = self._known.get(record["key"])
        again = before is not None and before.state != SUCCEEDED
        return TransferState(
            site=record["site"],
            artifact=record["artifact"],
            collection=record["collection"],
            fetched=record["direction"] == "fetch",
            began=before.began if before and again else record["time"],
            submission_id=record["submission_id"],
        )


def _place(transfer: Transfer) -> dict[str, Any]:
    fields = asdict(transfer)
    return {key: fields[key] for key in ("key", "site", "round", "direction")}

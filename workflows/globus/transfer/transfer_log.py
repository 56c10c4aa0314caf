"""What the journal knows of the campaign's transfers, so that each is handed in once, whichever driver asks."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from workflows.records.journal import Journal, Record

Direction = Literal["send", "fetch"]
SUCCEEDED = "SUCCEEDED"
EVENTS = ("transfer_submitting", "transfer_submitted", "transfer_ended", "artifacts_cleaned")


@dataclass(frozen=True)
class Transfer:
    """What is to be brought where, for whom.

    Attributes:
        key: names the work; equal work, equal key, in every driver of the run.
        site, round: who it is for.
        direction: ``send`` to the site, ``fetch`` from it.
        collection: id of the site's collection.
        artifact: SHA-256 of the artifact.
        nbytes: of the artifact.
        files: how many go along.
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
    """How far a piece of work has come, over all its attempts.

    Attributes:
        site: that it was begun for.
        artifact, collection: as on the waybill.
        began: when the first attempt was to be handed in; unix seconds.
        submission_id: of the last attempt.
        task_id: of the last attempt; None: not known to have been handed in.
        state: how the last attempt has ended; None: it has not, as far as is known.
        ended: when; unix seconds.
    """

    site: str
    artifact: str
    collection: str
    began: float
    submission_id: str
    task_id: str | None = None
    state: str | None = None
    ended: float = 0.0


class TransferLog:
    """Writes what happens to transfers into the journal, and remembers it by the key of the work."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._known: dict[str, TransferState] = {}
        self._lock = threading.Lock()
        for record in journal.events(
            "transfer_submitting", "transfer_submitted", "transfer_ended", "artifacts_cleaned"
        ):
            self._remember(record)

    def find(self, key: str) -> TransferState | None:
        """What is known of a piece of work; None: nothing, or what it brought has been cleaned away."""
        return self._known.get(key)

    def submitting(self, waybill: Transfer, submission_id: str) -> None:
        """To be called before a transfer is handed in."""
        self._write("transfer_submitting", **asdict(waybill), submission_id=submission_id)

    def submitted(self, waybill: Transfer, submission_id: str, task_id: str) -> None:
        self._write("transfer_submitted", **_place(waybill), submission_id=submission_id, task_id=task_id)

    def ended(self, waybill: Transfer, shipment: TransferState, state: str, **details: Any) -> TransferState:
        """To be called once it is known what has come of an attempt; what stands now."""
        ids = {"submission_id": shipment.submission_id, "task_id": shipment.task_id}
        self._write("transfer_ended", **_place(waybill), **ids, state=state, **details)
        return self._known[waybill.key]

    def cleaned(self, site: str, collection: str, artifacts: Collection[str]) -> None:
        """To be called before artifacts are deleted at a site: they are sent again when they are needed again."""
        self._write("artifacts_cleaned", site=site, collection=collection, artifacts=sorted(artifacts))

    def _write(self, event: str, **fields: Any) -> None:
        record = self.journal.write(event, **fields)
        with self._lock:
            self._remember(record)

    def _remember(self, record: Record) -> None:
        if record["event"] == "artifacts_cleaned":
            gone = set(record["artifacts"])
            here = record["collection"]
            self._known = {k: s for k, s in self._known.items() if s.collection != here or s.artifact not in gone}
        elif record["event"] == "transfer_submitting":
            self._known[record["key"]] = self._begun(record)
        elif record["key"] in self._known:
            known = self._known[record["key"]]
            later = {"task_id": record["task_id"]}
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
            began=before.began if before and again else record["time"],
            submission_id=record["submission_id"],
        )


def _place(waybill: Transfer) -> dict[str, Any]:
    fields = asdict(waybill)
    return {key: fields[key] for key in ("key", "site", "round", "direction")}

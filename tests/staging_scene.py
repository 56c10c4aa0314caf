"""A run, two sites of one facility and a Transfer service, for the tests of Globus staging."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from facilities.globus.transfer import Transfer
from facilities.globus.transfer_fixtures import TransferFacility
from transfer_driver import QUICK, TASK_ID, Run, globus_site, make_artifact, place

from site_configs.library.site import Collection
from workflows.globus.identity import globus_app, transfer_client
from workflows.globus.transfer.calls import Backoff
from workflows.globus.transfer.staging import GlobusStaging
from workflows.records.journal import Journal

MIB = 1 << 20
WAIT_S = 30.0


class Scene:
    """A run directory, two sites of one facility that share a store's folder, and a Transfer service."""

    def __init__(self, facility: TransferFacility, root: Path) -> None:
        self.facility, self.transfer = facility, facility.transfer
        self.here = facility.transfer.add_collection(root / "server", "server")
        rules = {"in": "rw", "out": "r"}
        self.there = facility.transfer.add_collection(root / "facility", "facility", rules=rules)
        folder = self.there.folder
        self.run = Run(
            self.here.folder / "runs" / "demo",
            Collection(self.here.id, self.here.folder),
            {name: globus_site(name, self.there.id, folder, root / "private" / name) for name in ("polaris", "aurora")},
        )
        self.run.path.mkdir(parents=True)
        self.stagings: list[GlobusStaging] = []
        self.model = {"artifact": make_artifact(self.run.store, os.urandom(MIB)), "frozen": "abc"}

    def staging(self, backoff: Backoff = QUICK, **settings: Any) -> GlobusStaging:
        """Close the earlier drivers and return the staging of another driver on the same run."""
        for staging in self.stagings:
            staging.close()
            staging.journal.close()
        settings.setdefault("make_client", partial(transfer_client, globus_app()))
        journal = Journal(self.run.path / "journal.jsonl")
        staging = GlobusStaging(journal, server=self.run.server, sites=self.run.sites, backoff=backoff, **settings)
        self.stagings.append(staging)
        return staging

    def send(self, staging: GlobusStaging, site: str = "polaris", attempt: int = 1, store: str = "") -> dict[str, Any]:
        return staging.send(place(site), self.model, str(self.run.store), store or str(self.run.at(site)), attempt)

    def manifest(self, content: bytes = b"update" * 100_000, site: str = "polaris") -> Any:
        """Write an update and its manifest at a site; return the manifest."""
        out = self.run.leaving(site)
        artifact = make_artifact(out, content)
        manifest = {
            "task_id": TASK_ID,
            "artifact": artifact,
            "store": str(out),
            "started": 5.0,
            "ended": 9.0,
        }
        (out / f"{TASK_ID}.json").write_text(json.dumps(manifest))
        return manifest

    def fetch(self, staging: GlobusStaging, manifest: Any, attempt: int = 1) -> dict[str, Any]:
        return staging.fetch(place(), manifest, self.model, str(self.run.store), attempt)

    def has_record(self, event: str) -> bool:
        """Return True if the journal has a record of this event."""
        return (self.run.path / "journal.jsonl").exists() and bool(self.run.records(event))

    @contextmanager
    def threads(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Yield threads that are not waited for when a test fails; ``close`` ends them."""
        pool = ThreadPoolExecutor(count)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False)

    def close(self) -> None:
        for staging in self.stagings:
            staging.close()
        self.transfer.release()
        assert in_clear(self.transfer) == []

    def states(self) -> list[str]:
        return [record["state"] for record in self.run.records("transfer_ended")]


def in_clear(transfer: Transfer) -> list[dict[str, Any]]:
    """Return the documents of transfers whose files Globus may move without encryption."""
    moves = [task.document for task in transfer.tasks if task.document["DATA_TYPE"] == "transfer"]
    return [document for document in moves if document.get("encrypt_data") is not True]


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    return ThreadPoolExecutor(1).submit(work)

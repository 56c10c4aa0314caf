"""The driver's part of transfers: a GlobusStaging for tests, also in a process of its own that may be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.artifacts.store import Artifact, sha256_file
from apps.base.identity import Place
from site_configs.library.site import Collection, Exchange, Site
from workflows.globus.transfer.calls import Backoff
from workflows.globus.transfer.staging import GlobusStaging
from workflows.records.journal import Journal

QUICK = Backoff(0.03, 0.1, 0.02, 0.2, stall_s=0.5, overdue_s=60)
TASK_ID = "0123456789abcdef" * 2


def no_provider(_: str) -> Any:
    raise AssertionError("a transfer starts no block")


def globus_site(name: str, collection: str, folder: Path, root: Path) -> Site:
    """Return a site whose artifacts are staged by Globus Transfer."""
    exchange = Exchange(folder / "in" / "demo" / name, folder / "out" / "demo" / name)
    ends = {"collection": Collection(collection, folder), "carrier": "globus", "exchange": exchange}
    return Site(name=name, machine="test", route="globus", storage_root=root, provider=no_provider, **ends)


def make_artifact(store: Path, content: bytes) -> Artifact:
    """Write a file with the name of an artifact and return the artifact."""
    store.mkdir(parents=True, exist_ok=True)
    path = store / "new"
    path.write_bytes(content)
    sha256 = sha256_file(path)
    path.rename(store / f"{sha256}.safetensors")
    return Artifact(sha256=sha256, nbytes=len(content), kind="model")


@dataclass(frozen=True)
class Run:
    """Run directory, collection of the server, and sites of one run."""

    path: Path
    server: Collection
    sites: Mapping[str, Site]

    @property
    def store(self) -> Path:
        return self.path / "artifacts"

    def at(self, site: str) -> Path:
        """Folder of the models that are sent to a site."""
        return self.sites[site].incoming

    def leaving(self, site: str) -> Path:
        """Folder of the updates of a site."""
        return self.sites[site].outgoing

    def records(self, *events: str) -> list[dict[str, Any]]:
        lines = (self.path / "journal.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] in events or not events]


def place(site: str = "polaris", number: int = 1) -> Place:
    return Place(site=site, round=number)


def main() -> None:
    """Send an artifact to a site: ``RUN SERVER_ID SERVER_FOLDER SITE_ID SITE_FOLDER ROOT ARTIFACT(JSON)``."""
    run, server_id, server_folder, site_id, site_folder, root, text = sys.argv[1:]
    from workflows.globus.identity import globus_app, transfer_client

    app = globus_app()
    site = globus_site("polaris", site_id, Path(site_folder), Path(root))
    staging = GlobusStaging(
        Journal(Path(run) / "journal.jsonl"),
        lambda ids: transfer_client(app, ids),
        Collection(server_id, Path(server_folder)),
        {"polaris": site},
        backoff=QUICK,
    )
    staging.send(place(), {"artifact": json.loads(text)}, f"{run}/artifacts", str(site.incoming), 1)


if __name__ == "__main__":
    main()

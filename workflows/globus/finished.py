"""Manifests of finished trainings, read without a task at the site: on this machine, by HTTPS, or by Transfer."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import LARGEST, manifest_path
from apps.base.errors import CrossfedError
from data.files import UNFINISHED
from data.foreign import parse_json, read_small
from site_configs.library.site import Site
from workflows.globus.transfer.https import FileReader
from workflows.globus.transfer.sizes import require_size
from workflows.globus.transfer.staging import GlobusStaging
from workflows.globus.transfer.task import TaskHistory, TransferRequest, follow, new_submission_id, submit

TRANSFER_S = 600.0  # that a transfer of a manifest may take


def find_manifest(site: Site, reader: FileReader | None, staging: GlobusStaging | None, task_id: str) -> Any:
    """Return the manifest that a site has written for a task, unchecked; None: it has none, or is silent.

    Args:
        site: with an exchange folder.
        reader: for sites with the carrier ``globus``.
        staging: for those whose collection has no web server.
        task_id: of the training.
    """
    path = manifest_path(site.outgoing, task_id)
    try:
        if site.carrier != "globus":
            content = _read(path)
        else:
            assert site.collection is not None and reader is not None and staging is not None
            if reader.server(site.collection):
                content = reader.read(site.collection, path)
            else:
                content = _transferred(staging, site, path)
        manifest = parse_json(content.decode(errors="replace")) if content else None
    except (CrossfedError, ValueError):
        return None
    # as ``local_train`` answers with the manifest of an earlier attempt
    return {**manifest, "store": str(site.outgoing), "reused": True} if isinstance(manifest, dict) else None


def _transferred(staging: GlobusStaging, site: Site, path: Path) -> bytes | None:
    """Fetch a manifest by a transfer of its own; None: the site has none."""
    assert site.collection is not None
    here = Path(staging.journal.path).parent / f"{UNFINISHED}{site.name}-{path.name}"
    there = site.collection.path_of(path)
    require_size(staging.caller, site.collection.id, there, LARGEST, path)
    files = ((there, staging.server.path_of(here)),)
    label = f"crossfed {staging.name} manifest {site.name}"
    request = TransferRequest(site.collection.id, staging.server.id, files, label, TRANSFER_S, LARGEST)
    task_id = submit(staging.caller, request, new_submission_id(staging.caller))
    try:
        with closing(staging.queue.follower.states(task_id)) as states:
            result = follow(staging.caller, task_id, lambda *_: None, states, TaskHistory(nbytes=LARGEST))
        return None if result.missing else _read(here)
    finally:
        with suppress(OSError):
            here.unlink()


def _read(path: Path) -> bytes | None:
    try:
        return read_small(path, LARGEST)
    except (OSError, ValueError):
        return None

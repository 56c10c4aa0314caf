"""Artifacts on their way to sites and back by Globus Transfer, as apps that the driver runs in threads of its own.

Each piece of work has a key that is the same in every driver of a run. The journal tells what has come of it: a
transfer of an earlier driver is followed, and one whose hand-in was cut short is handed in under the same name, which
Globus takes once.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.artifacts.manifests import Manifest, manifest_path
from apps.artifacts.store import Artifact, artifact_path, verify
from apps.base.errors import ArtifactError, UpdateRefused, placed
from apps.base.files import cannot_write
from apps.base.identity import Place, identity
from apps.transfer import verify_or_set_aside
from site_configs.library.site import Collection, Site
from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import TransferRefused
from workflows.globus.transfer.in_flight import TransferProgress, TransfersInFlight
from workflows.globus.transfer.task import TransferRequest, TransferResult, delete
from workflows.globus.transfer.transfer_log import SUCCEEDED, Direction, Transfer, TransferLog, TransferState
from workflows.globus.transfer.transfers import TransferQueue
from workflows.records.journal import Journal

if TYPE_CHECKING:
    from globus_sdk import TransferClient

logger = logging.getLogger(__name__)
MakeClient = Callable[[Sequence[str]], "TransferClient"]
DEADLINE_S = 3 * 24 * 3600.0
SHA256, TASK_ID = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")


class GlobusStaging:
    """Globus Transfer for one run; ``send``, ``fetch`` and ``clean`` are apps, for up to three threads.

    Args:
        journal: of the run.
        make_client: an authorised client for collections with these ids; called when the first transfer is due.
        server: the driver's own collection, which shows the run directory.
        sites: of the campaign, by name; those that Globus carries for have a collection.
        name: of the run, for the labels of the transfers.
        retries: how often a failed transfer is begun anew before its task fails.
        patience: how often is looked, how long is waited.
        deadline_s: after so long Globus gives up on a transfer.
    """

    def __init__(
        self,
        journal: Journal,
        make_client: MakeClient,
        server: Collection,
        sites: Mapping[str, Site],
        *,
        name: str = "",
        retries: int = 2,
        patience: Backoff | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.journal, self.server, self.sites, self.name, self.deadline_s = journal, server, sites, name, deadline_s
        ends = [site.collection.id for site in sites.values() if site.carrier == "globus" and site.collection]
        self.stop = threading.Event()
        self.caller = RetryingClient(
            lambda: make_client(list(dict.fromkeys([server.id, *ends]))),
            patience or Backoff(),
            self.stop,
            _told_once(journal),
        )
        self.log = TransferLog(journal)
        self.shipper = TransferQueue(self.log, self.caller, retries)
        self.underway = TransfersInFlight(self.stop)

    # -- apps -------------------------------------------------------------------------------------------------------

    def send(
        self, place: Place, model: dict[str, Any], store_here: str, store_there: str, attempt: int
    ) -> dict[str, Any]:
        """Bring the global model to a site; the site verifies it when it reads it.

        Args:
            place: the site and the round.
            model: a task result that carries ``artifact``.
            store_here, store_there: the server's and the site's folder of artifacts.
            attempt: from the second on the model is sent although it was sent before.

        Raises:
            ArtifactError: the model is not whole here.
            TransferFailed: Globus could not bring it there.
            TransferLeft: the driver stops.
        """
        with placed(**place):
            collection, artifact = self._collection(place["site"]), model["artifact"]
            there = collection.path_of(artifact_path(store_there, artifact))
            mine = {"for": place["site"], "attempt": attempt} if attempt > 1 else {}
            key = identity({"collection": collection.id, "path": there, **mine})
            waybill = self._waybill(key, place, "send", artifact, files=1)
            shipment = self.underway.once(waybill, lambda moving: self._send(waybill, store_here, there, moving))
        return {
            "artifact": artifact,
            "frozen": model.get("frozen", ""),
            "store": store_there,
            "nbytes_moved": artifact["nbytes"] if shipment.site == place["site"] else 0,
            "started": shipment.began,
            "ended": shipment.ended,
        }

    def fetch(self, place: Place, manifest: Manifest, store_here: str, attempt: int) -> dict[str, Any]:
        """Bring a site's update here, and its manifest into the run directory's ``manifests/SITE``.

        Args:
            place: the site and the round.
            manifest: what the site said of the update.
            store_here: the server's folder of artifacts, in the run directory.
            attempt: each is a piece of work of its own.

        Returns:
            The manifest, but with store, bytes and times of this move; ``manifest`` in it is what the site said.

        Raises:
            UpdateRefused: the manifest names what cannot be a name.
            ArtifactError: the site does not have the update any more, or not whole; to train again mends that.
            TransferFailed: Globus could not bring it here.
            TransferLeft: the driver stops.
        """
        moved, started, ended = 0, time.time(), 0.0
        with placed(**place):
            _check_names(manifest)
            if not _is_whole(store_here, manifest["artifact"]):
                shipment = self._fetch(place, manifest, store_here, attempt)
                moved, started, ended = manifest["artifact"]["nbytes"], shipment.began, shipment.ended
        return {
            **manifest,
            "manifest": manifest,
            "store": store_here,
            "nbytes_moved": moved,
            "started": started,
            "ended": ended or time.time(),
        }

    def clean(self, place: Place, shas: Sequence[str]) -> dict[str, Any]:
        """Have artifacts deleted in a site's own store that no coming task of any site needs from there.

        Args:
            place: the site and the round.
            shas: SHA-256 of the artifacts.

        Returns:
            ``task_id`` of the deletion, which nobody waits for; None: there was nothing to delete.

        Raises:
            TransferFailed: Globus does not take it; nothing of the campaign depends on it.
        """
        started, site = time.time(), place["site"]
        with placed(**place):
            collection, store = self._collection(site), self.sites[site].storage_root / "artifacts"
            named = [sha for sha in shas if SHA256.fullmatch(sha)]
            paths = tuple(collection.path_of(store / f"{sha}.safetensors") for sha in named)
            task_id = None
            if paths:
                self.log.cleaned(site, collection.id, named)
                label = f"crossfed {self.name} clean {site}"
                task_id = delete(self.caller, collection.id, paths, label, self.deadline_s)
        return {"task_id": task_id, "started": started, "ended": time.time()}

    # -- for the driver ---------------------------------------------------------------------------------------------

    def progress(self, site: str) -> dict[str, Any] | None:
        """What is on its way to or from a site: direction, nbytes, bytes_transferred, rate (bytes per second),
        nice_status, trouble (None, or what holds it up); None: nothing."""
        return self.underway.progress(site)

    def close(self) -> None:
        """Let everybody go who waits; what Globus has been given goes on."""
        self.stop.set()

    # -- within -----------------------------------------------------------------------------------------------------

    def _collection(self, site: str) -> Collection:
        collection = self.sites[site].collection
        if collection is None:
            raise TransferRefused("the site has no Globus collection", remedy="Set 'collection' for it")
        return collection

    def _waybill(self, key: str, place: Place, direction: Direction, artifact: Artifact, files: int) -> Transfer:
        ids = self._collection(place["site"]).id, artifact["sha256"]
        return Transfer(key, place["site"], place["round"], direction, *ids, artifact["nbytes"], files)

    def _parcel(self, waybill: Transfer, source: str, destination: str, *files: tuple[str, str]) -> TransferRequest:
        label = f"crossfed {self.name} {waybill.direction} {waybill.site} round {waybill.round}"
        return TransferRequest(source, destination, files, label, self.deadline_s)

    def _send(self, waybill: Transfer, store_here: str, there: str, moving: TransferProgress) -> TransferState:
        known = self.log.find(waybill.key)
        if known and known.state == SUCCEEDED:
            return known
        artifact = Artifact(sha256=waybill.artifact, nbytes=waybill.nbytes, kind="model")
        verify_or_set_aside(store_here, artifact)
        here = self.server.path_of(artifact_path(store_here, artifact))
        parcel = self._parcel(waybill, self.server.id, waybill.collection, (here, there))
        return self.shipper.ship(waybill, parcel, self._was_found, moving)

    def _was_found(self, outcome: TransferResult) -> None:
        """What lies here was not found through the collection: it shows another folder than the campaign says."""
        if outcome.missing:
            raise TransferRefused(
                f"collection {self.server.id} does not show {outcome.missing[0]}",
                remedy="Set 'globus.folder' to the folder that the collection shows as its /, then resume",
            )

    def _fetch(self, place: Place, manifest: Manifest, store_here: str, attempt: int) -> TransferState:
        artifact, root = manifest["artifact"], self.sites[place["site"]].storage_root
        papers = _made(Path(store_here).parent / "manifests" / place["site"])
        pairs = (
            (artifact_path(root / "artifacts", artifact), artifact_path(store_here, artifact)),
            (manifest_path(root, manifest["task_id"]), papers / f"{manifest['task_id']}.json"),
        )
        collection = self._collection(place["site"])
        files = [(collection.path_of(there), self.server.path_of(here)) for there, here in pairs]
        work = {"site": place["site"], "task": manifest["task_id"], "path": files[0][1], "attempt": attempt}
        waybill = self._waybill(identity(work), place, "fetch", artifact, len(files))
        parcel = self._parcel(waybill, collection.id, self.server.id, *files)

        def arrived(outcome: TransferResult) -> None:
            if files[0][0] in outcome.missing:
                raise ArtifactError("the update is not at the site any more", file=str(pairs[0][0]))
            # Globus compares with what it has read; this compares with what the site has made
            verify(store_here, artifact)

        return self.underway.once(
            waybill, lambda moving: self.shipper.ship(waybill, parcel, arrived, moving, anew=True)
        )


def _told_once(journal: Journal) -> Callable[[str | None], None]:
    """The journal says once that the service does not answer, and once that it does again."""
    lock, silent = threading.Lock(), False

    def tell(trouble: str | None) -> None:
        nonlocal silent
        with lock:
            changed, silent = (trouble is not None) != silent, trouble is not None
            if changed and trouble:
                logger.warning("Globus Transfer does not answer: %s", trouble)
                journal.write("transfer_unreachable", reason=trouble)
            elif changed:
                journal.write("transfer_back")

    return tell


def _check_names(manifest: Manifest) -> None:
    """What a site says becomes names of files here: it must be nothing but names.

    Raises:
        UpdateRefused: it is something else.
    """
    for name, text in ((SHA256, manifest["artifact"]["sha256"]), (TASK_ID, manifest["task_id"])):
        if not isinstance(text, str) or not name.fullmatch(text):
            raise UpdateRefused(f"the manifest names {str(text)[:70]!r}, which is no identity of ours")


def _is_whole(store: str, artifact: Artifact) -> bool:
    try:
        verify(store, artifact)
    except ArtifactError:
        return False
    return True


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder

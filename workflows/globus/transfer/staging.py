"""Staging of artifacts to sites and back by Globus Transfer, as apps that the driver runs in threads of its own.

Each transfer has a key that is the same in every driver of a run. The journal has its state: a transfer of an earlier
driver is followed, and one whose submission was interrupted is submitted under the same id, which Globus accepts once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.artifacts.manifests import Manifest, require_acceptable
from apps.artifacts.store import Artifact, artifact_path, verify
from apps.base.errors import ArtifactError, placed
from apps.base.identity import Place, identity
from apps.transfer import sent_artifact, verify_or_delete
from site_configs.library.site import Collection, Site
from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import TransferRefused
from workflows.globus.transfer.in_flight import TransferProgress, TransfersInFlight
from workflows.globus.transfer.sizes import require_size
from workflows.globus.transfer.task import DEADLINE_S, TransferRequest, TransferResult, delete
from workflows.globus.transfer.transfer_log import SUCCEEDED, Direction, Transfer, TransferLog, TransferState
from workflows.globus.transfer.transfers import AT_ONCE, TransferQueue
from workflows.records.journal import Journal

if TYPE_CHECKING:
    from globus_sdk import TransferClient

logger = logging.getLogger(__name__)
MakeClient = Callable[[Sequence[str]], "TransferClient"]


class GlobusStaging:
    """Globus Transfer for one run; ``send``, ``fetch`` and ``clean`` are apps, for ``threads`` threads.

    Args:
        journal: of the run.
        make_client: returns an authorised client for collections with these ids; called at the first transfer.
        server: the driver's own collection, which shows the run directory.
        sites: of the campaign, by name; those with the carrier ``globus`` have a collection.
        name: of the run, for the labels of the transfers.
        retries: how often a failed transfer is repeated before its task fails.
        backoff: intervals of status requests and retries.
        deadline_s: Globus gives up on a transfer after so long.
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
        backoff: Backoff | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.journal, self.server, self.sites, self.name, self.deadline_s = journal, server, sites, name, deadline_s
        ends = [site.collection.id for site in sites.values() if site.carrier == "globus" and site.collection]
        self.stop = threading.Event()
        self.caller = RetryingClient(
            lambda: make_client(list(dict.fromkeys([server.id, *ends]))),
            backoff or Backoff(),
            self.stop,
            _journal_outages(journal),
        )
        self.log = TransferLog(journal)
        self.queue = TransferQueue(self.log, self.caller, retries)
        self.in_flight = TransfersInFlight(self.stop)

    # -- apps -------------------------------------------------------------------------------------------------------

    def send(
        self, place: Place, model: dict[str, Any], store_here: str, store_there: str, attempt: int
    ) -> dict[str, Any]:
        """Transfer the global model to a site; the site verifies it when it reads it.

        Args:
            place: the site and the round.
            model: a task result that carries ``artifact``.
            store_here: the server's folder of artifacts.
            store_there: folder of what is sent to the site.
            attempt: from the second on the model is sent although it was sent before.

        Returns:
            As ``apps.transfer.stage_out``; and ``fetched``: the SHA-256 of the last updates that the server has
            fetched from the site, which the site may delete.

        Raises:
            ArtifactError: the model is damaged here.
            TransferFailed: the transfer failed.
            TransferDetached: the driver stops.
        """
        with placed(**place):
            collection, artifact = self._collection(place["site"]), sent_artifact(model)
            there = collection.path_of(artifact_path(store_there, artifact))
            own = {"for": place["site"], "attempt": attempt} if attempt > 1 else {}
            key = identity({"collection": collection.id, "path": there, **own})
            transfer = self._transfer(key, place, "send", artifact, files=1)
            state = self.in_flight.once(transfer, lambda progress: self._send(transfer, store_here, there, progress))
        return {
            "artifact": artifact,
            "master": model["artifact"],
            "frozen": model.get("frozen", ""),
            "store": store_there,
            "fetched": self.log.last_fetched(place["site"]),
            "nbytes_moved": artifact["nbytes"] if state.site == place["site"] else 0,
            "started": state.began,
            "ended": state.ended,
        }

    def fetch(
        self, place: Place, manifest: Manifest, base: dict[str, Any], store_here: str, attempt: int
    ) -> dict[str, Any]:
        """Transfer a site's update to the server; its manifest has come with the site's answer.

        Args:
            place: the site and the round.
            manifest: the site's record of the update.
            base: the ``send`` result of the model that the site was sent.
            store_here: the server's folder of artifacts, in the run directory.
            attempt: each is a transfer of its own.

        Returns:
            The manifest, but with store, bytes and times of this transfer; ``manifest`` in it is the site's own.

        Raises:
            UpdateRefused: the manifest has a malformed name, or the update is larger than the model.
            ArtifactError: the site does not have the update any more, or it is damaged; training again repairs that.
            TransferFailed: the transfer failed.
            TransferDetached: the driver stops.
        """
        moved, started, ended = 0, time.time(), 0.0
        with placed(**place):
            require_acceptable(manifest, base["artifact"])
            if not _is_whole(store_here, manifest["artifact"]):
                state = self._fetch(place, manifest, store_here, attempt)
                moved, started, ended = manifest["artifact"]["nbytes"], state.began, state.ended
        return {
            **manifest,
            "manifest": manifest,
            "store": store_here,
            "nbytes_moved": moved,
            "started": started,
            "ended": ended or time.time(),
        }

    def clean(self, place: Place, shas: Sequence[str]) -> dict[str, Any]:
        """Delete models that were sent to a site and that no later task of any site needs from there.

        Args:
            place: the site and the round.
            shas: SHA-256 of the models.

        Returns:
            ``task_id`` of the deletion, which is not waited for; None: there was nothing to delete.

        Raises:
            TransferFailed: Globus does not accept it; the campaign does not depend on it.
        """
        started, site = time.time(), place["site"]
        with placed(**place):
            collection, store = self._collection(site), self.sites[site].incoming
            gone = [Artifact(sha256=sha, nbytes=0, kind="") for sha in shas]
            paths = tuple(collection.path_of(artifact_path(store, artifact)) for artifact in gone)
            task_id = None
            if paths:
                self.log.cleaned(site, collection.id, shas)
                label = f"crossfed {self.name} clean {site}"
                task_id = delete(self.caller, collection.id, paths, label, self.deadline_s)
        return {"task_id": task_id, "started": started, "ended": time.time()}

    # -- for the driver ---------------------------------------------------------------------------------------------

    def progress(self, site: str) -> dict[str, Any] | None:
        """Return the progress of the latest transfer to or from a site, see ``TransferProgress.shown``; None: none."""
        return self.in_flight.progress(site)

    def threads(self) -> int:
        """Return the number of threads for the apps: one that waits for its turn must not keep others from theirs."""
        return AT_ONCE + 2 * sum(site.carrier == "globus" for site in self.sites.values())

    def close(self) -> None:
        """Release all waiting threads; submitted transfers continue."""
        self.stop.set()

    # -- within -----------------------------------------------------------------------------------------------------

    def _collection(self, site: str) -> Collection:
        collection = self.sites[site].collection
        if collection is None:
            raise TransferRefused("the site has no Globus collection", remedy="Set 'collection' for it")
        return collection

    def _transfer(self, key: str, place: Place, direction: Direction, artifact: Artifact, files: int) -> Transfer:
        ids = self._collection(place["site"]).id, artifact["sha256"]
        return Transfer(key, place["site"], place["round"], direction, *ids, artifact["nbytes"], files)

    def _request(self, transfer: Transfer, source: str, destination: str, *files: tuple[str, str]) -> TransferRequest:
        label = f"crossfed {self.name} {transfer.direction} {transfer.site} round {transfer.round}"
        nbytes = transfer.nbytes if transfer.direction == "fetch" else None
        return TransferRequest(source, destination, files, label, self.deadline_s, nbytes)

    def _send(self, transfer: Transfer, store_here: str, there: str, progress: TransferProgress) -> TransferState:
        known = self.log.find(transfer.key)
        if known and known.state == SUCCEEDED:
            return known
        artifact = Artifact(sha256=transfer.artifact, nbytes=transfer.nbytes, kind="model")
        verify_or_delete(store_here, artifact)
        here = self.server.path_of(artifact_path(store_here, artifact))
        request = self._request(transfer, self.server.id, transfer.collection, (here, there))
        return self.queue.run(transfer, request, self._check_sent, progress)

    def _check_sent(self, result: TransferResult) -> None:
        """Raise if a file of the run directory was not found: the collection shows another folder than configured."""
        if result.missing:
            raise TransferRefused(
                f"collection {self.server.id} does not show {result.missing[0]}",
                remedy="Set 'globus.folder' to the folder that the collection shows as its /, then resume",
            )

    def _fetch(self, place: Place, manifest: Manifest, store_here: str, attempt: int) -> TransferState:
        artifact, out = manifest["artifact"], self.sites[place["site"]].outgoing
        there, collection = artifact_path(out, artifact), self._collection(place["site"])
        update = collection.path_of(there), self.server.path_of(artifact_path(store_here, artifact))
        work = {"site": place["site"], "task": manifest["task_id"], "path": update[1], "attempt": attempt}
        transfer = self._transfer(identity(work), place, "fetch", artifact, files=1)
        request = self._request(transfer, collection.id, self.server.id, update)

        def check(result: TransferResult) -> None:
            if update[0] in result.missing:
                raise ArtifactError("the update is not at the site any more", file=str(there))
            # Globus compares with what it has read; this compares with what the site has written
            verify_or_delete(store_here, artifact)

        def run(progress: TransferProgress) -> TransferState:
            require_size(self.caller, collection.id, update[0], artifact["nbytes"], there)
            try:
                return self.queue.run(transfer, request, check, progress, anew=True)
            except ArtifactError:
                artifact_path(store_here, artifact).unlink(missing_ok=True)  # what a cancelled transfer has brought
                raise

        return self.in_flight.once(transfer, run)


def _journal_outages(journal: Journal) -> Callable[[str | None], None]:
    """Return a callback that records once that the service does not answer, and once that it answers again."""
    lock, silent = threading.Lock(), False

    def record(trouble: str | None) -> None:
        nonlocal silent
        with lock:
            changed, silent = (trouble is not None) != silent, trouble is not None
            if changed and trouble:
                logger.warning("Globus Transfer does not answer: %s", trouble)
                journal.write("transfer_unreachable", reason=trouble)
            elif changed:
                journal.write("transfer_back")

    return record


def _is_whole(store: str, artifact: Artifact) -> bool:
    try:
        verify(store, artifact)
    except ArtifactError:
        return False
    return True

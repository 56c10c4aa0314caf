"""How artifacts reach a site and come back: which apps do it, and on which executor.

Where this machine sees a site's storage the server's worker copies or links; elsewhere Globus Transfer carries, and
the server's worker checks what has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from parsl.dataflow.futures import AppFuture

from apps.artifacts.manifests import Manifest
from apps.base.errors import ArtifactError
from apps.base.identity import Place
from apps.transfer import forget, removable, stage_in, stage_out
from workflows.planning.labels import SERVER, TRANSFERS
from workflows.planning.storage import stores_at

if TYPE_CHECKING:
    from workflows.globus.transfer.staging import GlobusStaging
    from workflows.planning.plan import Plan


class Submit(Protocol):
    """Submits an app for a site and a round to an executor."""

    def __call__(self, function: Callable[..., object], site: str, round: int, /, *args: object, on: str) -> AppFuture:
        """The future of its result."""


class Staging:
    """The ways between the server's store and the sites' stores.

    Args:
        plan: the checked campaign.
        store: the server's folder of artifacts.
        submit: of the engine.
        carriage: Globus Transfer, where a site needs it.
    """

    def __init__(self, plan: Plan, store: str, submit: Submit, carriage: GlobusStaging | None) -> None:
        self.plan, self.store, self.submit, self.carriage = plan, store, submit, carriage
        self.stores = stores_at(plan.sites)

    def out(self, site: str, number: int, model: AppFuture, attempt: int) -> AppFuture:
        """A model on its way to a site; the future of a stage-out result."""
        if self.plan.sites[site].carrier == "globus":
            assert self.carriage is not None
            there = self.stores[site]
            return self.submit(self.carriage.send, site, number, model, self.store, there, attempt, on=TRANSFERS)
        return self.submit(
            stage_out, site, number, model, self.store, self._store_at(site), *self._linked(site), on=SERVER
        )

    def back(self, site: str, number: int, manifest: AppFuture, base: AppFuture, attempt: int) -> AppFuture:
        """An update on its way to the server, where it is checked; the future of a stage-in result."""
        source = self._store_at(site)
        if self.plan.sites[site].carrier == "globus":
            assert self.carriage is not None
            manifest = self.submit(self.carriage.fetch, site, number, manifest, self.store, attempt, on=TRANSFERS)
            source = self.store
        return self.submit(
            stage_in, site, number, manifest, base, source, self.store, self.plan.rules, *self._linked(site), on=SERVER
        )

    def clear(self, site: str, number: int, base: AppFuture, earlier: AppFuture, manifest: AppFuture) -> AppFuture:
        """Make room at a site, once the next model is there, for what the server has of an earlier round.

        Args:
            site, number: whose training comes next, and in which round.
            base: its stage-out result.
            earlier, manifest: the stage-out result of the training before it, and what that came to.
        """
        if self.plan.sites[site].carrier == "globus":
            return self.submit(self.clear_far, site, number, base, earlier, manifest, on=TRANSFERS)
        root = self.plan.site_work[site]["root"]
        return self.submit(forget, site, number, root, base, earlier, manifest, on=SERVER)

    def clear_far(
        self, place: Place, base: dict[str, Any], earlier: dict[str, Any], manifest: Manifest
    ) -> dict[str, Any]:
        """The app behind ``clear`` where Globus carries; a model that several sites read from one store stays there."""
        assert self.carriage is not None
        shared = list(self.stores.values()).count(self._store_at(place["site"])) > 1
        return self.carriage.clean(place, removable(base, manifest, *(() if shared else (earlier,))))

    def hint(self, site: str, error: BaseException) -> str:
        """What a person should look at first when a file that was carried is not where it should be."""
        collection = self.plan.sites[site].collection
        if self.plan.sites[site].carrier != "globus" or collection is None or not isinstance(error, ArtifactError):
            return ""
        return f". Does the site's collection show {collection.folder} as /? If not: sites.{site}.collection_folder"

    def _store_at(self, site: str) -> str:
        return f"{self.plan.site_work[site]['root']}/artifacts"

    def _linked(self, site: str) -> tuple[bool, ...]:
        return (True,) if self.plan.sites[site].carrier == "shared" else ()

"""Staging of artifacts to a site and back: the apps that do it, and their executors.

Where this host sees a site's storage, the server's worker copies or links; elsewhere Globus Transfer moves the files,
and the server's worker checks what arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from apps.base.errors import ArtifactError
from apps.base.identity import Place
from apps.transfer import forget, no_longer_needed, stage_in, stage_out
from workflows.planning.labels import SERVER, TRANSFERS
from workflows.planning.storage import stores_at

if TYPE_CHECKING:
    from site_configs.library.site import Site
    from workflows.globus.transfer.staging import GlobusStaging
    from workflows.planning.plan import Plan

App = Callable[..., Any]


class Staging(Protocol):
    """The three movements of a site's artifacts; each submits apps and returns a future."""

    def stage_out(self, place: Place, model: Any, attempt: int, /) -> Any:
        """Bring a model to the site."""

    def stage_in(self, place: Place, manifest: Any, base: Any, attempt: int, /) -> Any:
        """Bring an update to the server and check it there."""

    def forget(self, place: Place, base: Any, earlier: Any, manifest: Any) -> Any:
        """Delete at the site the files of an earlier round, once ``base`` has arrived."""


class FolderStaging:
    """Staging where this host sees the site's storage; ``shared`` file systems are linked instead of copied."""

    def __init__(self, site: str, plan: Plan, app: Callable[..., App]) -> None:
        self.rules, self.server = plan.rules, plan.server_work["store"]
        self.incoming, self.outgoing = str(plan.sites[site].incoming), str(plan.sites[site].outgoing)
        self.link = (True,) if plan.sites[site].carrier == "shared" else ()
        self.copy_out, self.copy_in, self.remove = app(stage_out, SERVER), app(stage_in, SERVER), app(forget, SERVER)

    def stage_out(self, place: Place, model: Any, _attempt: int) -> Any:
        return self.copy_out(place, model, self.server, self.incoming, *self.link)

    def stage_in(self, place: Place, manifest: Any, base: Any, _attempt: int) -> Any:
        return self.copy_in(place, manifest, base, self.outgoing, self.server, self.rules, *self.link)

    def forget(self, place: Place, base: Any, earlier: Any, manifest: Any) -> Any:
        return self.remove(place, self.incoming, self.outgoing, base, earlier, manifest)


class TransferStaging:
    """Staging by Globus Transfer; sites that share a collection receive a model once.

    The site itself deletes its updates once the server has them: the collection lets the server only read them.
    """

    def __init__(self, site: str, plan: Plan, app: Callable[..., App], globus: GlobusStaging) -> None:
        stores = stores_at(plan.sites)
        self.rules, self.server, self.site = plan.rules, plan.server_work["store"], stores[site]
        shared = list(stores.values()).count(str(plan.sites[site].incoming)) > 1
        self.send, self.fetch = app(globus.send, TRANSFERS), app(globus.fetch, TRANSFERS)
        self.check, self.clean = app(stage_in, SERVER), app(_cleaner(globus, shared), TRANSFERS)

    def stage_out(self, place: Place, model: Any, attempt: int) -> Any:
        return self.send(place, model, self.server, self.site, attempt)

    def stage_in(self, place: Place, manifest: Any, base: Any, attempt: int) -> Any:
        fetched = self.fetch(place, manifest, base, self.server, attempt)
        return self.check(place, fetched, base, self.server, self.server, self.rules)

    def forget(self, place: Place, base: Any, earlier: Any, _manifest: Any) -> Any:
        return self.clean(place, base, earlier)


def _cleaner(globus: GlobusStaging, shared: bool) -> App:
    """Return the app behind ``forget``; a model that several sites read from one store is kept there."""

    def forget_at_collection(place: Place, base: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
        return globus.clean(place, [] if shared else no_longer_needed(base, earlier))

    return forget_at_collection


def staging_of(site: str, plan: Plan, app: Callable[..., App], globus: GlobusStaging | None) -> Staging:
    """Return how the artifacts of a site are moved."""
    if plan.sites[site].carrier != "globus":
        return FolderStaging(site, plan, app)
    assert globus is not None
    return TransferStaging(site, plan, app, globus)


def storage_hint(site: Site, error: BaseException) -> str:
    """Return what to check first when a file that Globus moved is not where it should be; else an empty text."""
    if site.carrier != "globus" or site.collection is None or not isinstance(error, ArtifactError):
        return ""
    return (
        f". Does the site's collection show {site.collection.folder} as /? If not: sites.{site.name}.collection_folder"
    )

"""The part of a run that uses Globus: the identity, the executors of its sites, and the staging of its artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from apps.training.progress import FILE
from site_configs.library.site import Site
from workflows.console.units import bytes_text
from workflows.globus.compute.service import ComputeService
from workflows.globus.finished import find_manifest
from workflows.globus.transfer.https import FileReader
from workflows.globus.transfer.staging import GlobusStaging
from workflows.planning.labels import TRANSFERS
from workflows.trust.answers import read_progress

if TYPE_CHECKING:
    from parsl.executors.base import ParslExecutor

    from workflows.globus.compute.executor import SiteExecutor
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory


@dataclass(frozen=True)
class GlobusRoute:
    """A driver's executors and staging through Globus; empty for a campaign that does not use it."""

    sites: Mapping[str, SiteExecutor] = field(default_factory=dict)
    staging: GlobusStaging | None = None

    def executors(self) -> list[ParslExecutor]:
        """Return the Parsl executors: one for each site, and threads of this process for the transfers."""
        from parsl.executors import ThreadPoolExecutor

        staging = self.staging
        threads = [ThreadPoolExecutor(label=TRANSFERS, max_threads=staging.threads())] if staging else []
        return [*self.sites.values(), *threads]

    def close(self) -> None:
        """Stop waiting for transfers; they and the sites' tasks continue without this driver."""
        if self.staging:
            self.staging.close()

    def transfer_text(self, site: str) -> str | None:
        """Return the progress of the transfer to or from a site for display; None: there is none."""
        return progress_text(self.staging.progress(site)) if self.staging else None

    def task_text(self, site: str, sent: Future[Any] | None = None) -> str | None:
        """Return the status of a site's task for display, after the size of the model that was sent for it.

        Args:
            site: its name.
            sent: its stage-out result, if available.
        """
        executor = self.sites.get(site)
        text = executor.status_text() if executor else None
        nbytes = sent.result()["nbytes_moved"] if text and sent and sent.exception() is None else 0
        return f"model sent ({bytes_text(nbytes)}); {text}" if nbytes else text

    def seen_at(self, site: str) -> float | None:
        """Return the UNIX time of the displayed state of a site; None: it is read directly, or never was read."""
        executor = self.sites.get(site)
        return executor.last_look["seen_at"] if executor else None

    def open_tasks(self) -> dict[str, int]:
        """Return the number of tasks per site that continue when this driver ends."""
        counts = {name: executor.open_tasks() for name, executor in self.sites.items()}
        return {name: count for name, count in counts.items() if count}


def globus_route(plan: Plan, run: RunDirectory) -> GlobusRoute:
    """Return the route of a plan; makes no request to Globus.

    Raises:
        UserMistake: half of a service account is set in the environment.
    """
    reached = {name: site for name, site in plan.sites.items() if site.route == "globus"}
    staged = [name for name, site in plan.sites.items() if site.carrier == "globus"]
    if not reached and not staged:
        return GlobusRoute()
    from workflows.globus.compute.executor import SiteExecutor
    from workflows.globus.identity import compute_client, globus_app, https_authorizer, transfer_client
    from workflows.globus.setup.template import user_endpoint_config

    app = globus_app()
    service = ComputeService(partial(compute_client, app), run.journal)
    staging, reader, read_state = None, None, None
    if staged:
        assert plan.campaign.globus is not None  # checked before
        staging = GlobusStaging(
            run.journal,
            partial(transfer_client, app),
            plan.campaign.globus.as_collection(),
            plan.sites,
            name=run.path.name,
            retries=plan.campaign.retries,
        )
        reader = FileReader(staging.caller, partial(https_authorizer, app))
        read_state = partial(state_over_https, reader, plan.sites)
    executors = {
        name: SiteExecutor(
            site,
            service,
            user_endpoint_config=user_endpoint_config(site),
            campaign=run.path.name,
            named=[key for key in ("data", "model") if getattr(plan.campaign.sites[name], key)],
            find_manifest=partial(find_manifest, site, reader, staging),
            read_state=read_state if _is_read_over_https(site) else None,
        )
        for name, site in reached.items()
    }
    return GlobusRoute(executors, staging)


def _is_read_over_https(site: Site) -> bool:
    """Return True if a site's state files are read from its collection: it has no endpoint for files."""
    assert site.endpoint is not None
    return site.carrier == "globus" and not site.endpoint.files


def state_over_https(reader: FileReader, sites: Mapping[str, Site], name: str) -> dict[str, Any] | None:
    """Read a site's progress file where its collection has a web server; None: it cannot be read.

    Raises:
        ValueError: it is no progress.
    """
    site = sites[name]
    assert site.collection is not None
    content = reader.read(site.collection, site.outgoing / FILE)
    return {"progress": read_progress(content.decode(errors="replace"))} if content else None


def progress_text(progress: Mapping[str, Any] | None) -> str | None:
    """Return the progress of a transfer for display; None: there is none."""
    if not progress:
        return None
    action = "sending the model" if progress["direction"] == "send" else "fetching the update"
    done = f"{bytes_text(progress['bytes_transferred'])} of {bytes_text(progress['nbytes'])}"
    trouble = f" ({progress['trouble']})" if progress.get("trouble") else ""
    return f"{action}: {done}{trouble}"

"""All of a run that goes through Globus: who asks, the executors of its sites, and what carries its artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from workflows.console.units import bytes_text
from workflows.planning.labels import TRANSFERS

if TYPE_CHECKING:
    from parsl.executors.base import ParslExecutor

    from site_configs.library.site import Site
    from workflows.globus.compute.executor import SiteExecutor
    from workflows.globus.compute.liveness import ReadState
    from workflows.globus.transfer.https import FileReader
    from workflows.globus.transfer.staging import GlobusStaging
    from workflows.planning.plan import Plan
    from workflows.records.run_directory import RunDirectory


@dataclass(frozen=True)
class GlobusRoute:
    """What a driver keeps of Globus; empty for a campaign that does not use it."""

    sites: Mapping[str, SiteExecutor] = field(default_factory=dict)
    staging: GlobusStaging | None = None

    def executors(self) -> list[ParslExecutor]:
        """For Parsl: one for each site, and threads of this process for the transfers."""
        from parsl.executors import ThreadPoolExecutor

        from workflows.globus.transfer.transfers import AT_ONCE

        threads = [ThreadPoolExecutor(label=TRANSFERS, max_threads=AT_ONCE)] if self.staging else []
        return [*self.sites.values(), *threads]

    def close(self) -> None:
        """Let go of what is under way: transfers and the sites' tasks go on without this driver."""
        if self.staging:
            self.staging.close()

    def transfer_text(self, site: str) -> str | None:
        """What is on its way to or from a site, for people."""
        return progress_text(self.staging.progress(site)) if self.staging else None

    def task_text(self, site: str, sent: Future[Any] | None = None) -> str | None:
        """What Globus says of a site's task, for people; before it what has gone there by Globus for that task.

        Args:
            site: its name.
            sent: its stage-out result, if it is there.
        """
        executor = self.sites.get(site)
        words = executor.status_text() if executor else None
        nbytes = sent.result()["nbytes_moved"] if words and sent and sent.exception() is None else 0
        return f"model sent ({bytes_text(nbytes)}); {words}" if nbytes else words

    def seen_at(self, site: str) -> float | None:
        """UNIX time at which a site was as it is shown; None: it is seen from here, or was never looked at."""
        executor = self.sites.get(site)
        return executor.last_look["seen_at"] if executor else None

    def open_tasks(self) -> dict[str, int]:
        """Tasks that go on at each site when this driver ends."""
        counts = {name: executor.open_tasks() for name, executor in self.sites.items()}
        return {name: count for name, count in counts.items() if count}


def globus_route(plan: Plan, run: RunDirectory) -> GlobusRoute:
    """The route of a plan; nothing is asked of Globus yet.

    Raises:
        UserMistake: half of a service account is set in the environment.
    """
    reached = {name: site for name, site in plan.sites.items() if site.route == "globus"}
    carried = [name for name, site in plan.sites.items() if site.carrier == "globus"]
    if not reached and not carried:
        return GlobusRoute()
    from workflows.globus.compute.executor import SiteExecutor
    from workflows.globus.compute.service import ComputeService
    from workflows.globus.identity import compute_client, globus_app, https_authorizer, transfer_client
    from workflows.globus.setup.template import user_endpoint_config
    from workflows.globus.transfer.https import FileReader
    from workflows.globus.transfer.staging import GlobusStaging

    app = globus_app()
    service = ComputeService(partial(compute_client, app), run.journal)
    staging, look = None, None
    if carried:
        assert plan.campaign.globus is not None  # checked before
        server = plan.campaign.globus.as_collection()
        staging = GlobusStaging(
            run.journal,
            partial(transfer_client, app),
            server,
            plan.sites,
            name=run.path.name,
            retries=plan.campaign.retries,
        )
        look = partial(seen_over_https, FileReader(staging.caller, partial(https_authorizer, app)), plan.sites)
    executors = {
        name: SiteExecutor(
            site, service, user_endpoint_config=user_endpoint_config(site), read_state=_read_state_of(site, look)
        )
        for name, site in reached.items()
    }
    return GlobusRoute(executors, staging)


def _read_state_of(site: Site, look: ReadState | None) -> ReadState | None:
    """How a site is looked at beside its tasks, where it has no endpoint for that."""
    assert site.endpoint is not None
    return look if site.carrier == "globus" and not site.endpoint.files else None


def seen_over_https(reader: FileReader, sites: Mapping[str, Site], name: str) -> dict[str, Any] | None:
    """A site's progress file, where its collection has a web server; None: nothing can be seen."""
    site = sites[name]
    assert site.collection is not None
    content = reader.read(site.collection, site.storage_root / "progress.json")
    return {"progress": json.loads(content)} if content else None


def progress_text(moving: Mapping[str, Any] | None) -> str | None:
    """A transfer that is under way, for people; None: none is."""
    if not moving:
        return None
    way = "sending the model" if moving["direction"] == "send" else "fetching the update"
    done = f"{bytes_text(moving['bytes_transferred'])} of {bytes_text(moving['nbytes'])}"
    held_up = f" ({moving['trouble']})" if moving.get("trouble") else ""
    return f"{way}: {done}{held_up}"

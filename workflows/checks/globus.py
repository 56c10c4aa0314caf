"""Checks of a site behind Globus before a campaign is sent there."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import REASON_LENGTH, CrossfedError
from apps.base.versions import compare_versions
from apps.site import MARK
from site_configs.library.site import Collection, Site
from workflows.checks.login_status import CheckResult, login_status
from workflows.checks.transfer_probe import (
    QUICK,
    TRANSFER_LIMIT_S,
    TransferCheck,
    clean_up,
    nearest_folder,
    path_exists,
    round_trip,
)
from workflows.globus.identity import compute_client, globus_app
from workflows.globus.transfer.calls import Backoff

if TYPE_CHECKING:
    from globus_compute_sdk import Client
    from globus_sdk import GlobusApp

OLDEST_AGENT = (4, 10)  # from here on an agent renders a template for each campaign
Ask = Callable[[Site], Mapping[str, Any]]


def check_globus_site(
    site: Site,
    server: Collection | None,
    *,
    work: Path | None = None,
    ask: Ask | None = None,
    app: GlobusApp | None = None,
    limit_s: float = TRANSFER_LIMIT_S,
    backoff: Backoff = QUICK,
) -> Iterator[CheckResult]:
    """Yield what was checked at a site, and its problem or None. Leaves an empty file at the site at most.

    Args:
        site: of the route or the carrier globus.
        server: the driver's own collection; None: the artifacts need none.
        work: a folder below that of the collection, for a file of 1 MB; default the collection's own.
        ask: asks the project's Python at the site for ``{"versions": {...}, "storage": problem or None}``; None: only
            a task in a block can ask it.
        app: the identity; default that of the environment.
        limit_s: time limit of one check.
        backoff: intervals of status requests for a transfer.

    Raises:
        UserMistake: half of a service account is set.
    """
    check = TransferCheck(site, server, app or globus_app(), work, limit_s, backoff)
    staged = site.carrier == "globus" and site.collection is not None
    collections = [found.id for found in (server, site.collection) if found] if staged else []
    login = list(login_status(check.app, collections))
    yield from login
    if any(problem for what, problem in login if not what.startswith("collection ")):
        return  # every other request would be refused
    if site.endpoint:
        yield from _endpoints(site, check.app)
    if staged:
        yield from _collection(check)
    if site.endpoint:
        marked = yield from _project(site, ask)
        if staged and marked:
            yield _same_folder(check)


# -- endpoints --------------------------------------------------------------------------------------------------


def _endpoints(site: Site, app: GlobusApp) -> Iterator[CheckResult]:
    assert site.endpoint is not None
    client = compute_client(app)
    for role, endpoint in (("for training", site.endpoint.training), ("for files", site.endpoint.files)):
        if endpoint:
            yield check_endpoint(client, role, endpoint)


def check_endpoint(client: Client, role: str, endpoint: str) -> CheckResult:
    """Check that an endpoint's agent is online and recent enough."""
    from globus_sdk import GlobusAPIError, NetworkError

    name = f"endpoint {role} ({endpoint})"
    try:
        facts, status = client.get_endpoint_metadata(endpoint), client.get_endpoint_status(endpoint)
    except GlobusAPIError as error:
        reasons = {403: "it belongs to another identity", 404: "there is none with this id"}
        return name, reasons.get(error.http_status, f"Globus refuses: {error.http_status} {error.code}")
    except NetworkError as error:
        return name, f"Globus is not reached: {str(error)[:REASON_LENGTH]}"
    except CrossfedError as error:
        return name, str(error)
    agent = str(facts.get("endpoint_version") or "")
    host = f" on {facts['hostname']}" if facts.get("hostname") else ""
    if status.get("status") != "online":
        return name, f"it is {status.get('status')}. Start its agent{host}: ./endpoints.sh start"
    if agent and version_of(agent) < OLDEST_AGENT:
        oldest = ".".join(map(str, OLDEST_AGENT))
        return name, f"its agent is {agent}, required is {oldest} or later. Update globus-compute-endpoint there"
    return f"{name} is online, agent {agent or 'of unknown version'}{host}", None


def version_of(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


# -- collections ------------------------------------------------------------------------------------------------


def _collection(check: TransferCheck) -> Iterator[CheckResult]:
    """Check that Transfer can write to the site's incoming folder, and that a file comes back unchanged."""
    there = check.collection
    with check.client() as (caller, trouble):
        try:
            above = nearest_folder(caller, there.id, there.path_of(check.site.incoming))
            yield f"collection shows {above}, where models are sent", None
            probe = f"{above.rstrip('/')}/.crossfed-probe-{secrets.token_hex(4)}"
            caller(lambda client: client.operation_mkdir(there.id, probe))
            yield f"collection can be written in {above}", None
        except (CrossfedError, ValueError) as error:
            yield f"collection {there.id} can be read and written", trouble.describe(error)
            return
    try:
        yield _round_trip(check, probe)
    finally:
        clean_up(check, probe)


def _round_trip(check: TransferCheck, folder: str) -> CheckResult:
    """Check that 1 MB goes to the site and comes back, and measure the seconds."""
    what = "1 MB goes to the site and comes back"
    if check.server is None:
        return what, "the driver has no collection. Set globus.collection and globus.folder in the campaign"
    try:
        out_s, back_s = round_trip(check, check.server, folder)
    except (CrossfedError, ValueError) as error:
        return what, str(error)
    except OSError as error:
        return what, f"{error.strerror} ({error.filename})"
    return f"1 MB goes to the site in {out_s:.1f} s and back in {back_s:.1f} s, its SHA-256 unchanged", None


# -- the project at the site ------------------------------------------------------------------------------------


def _project(site: Site, ask: Ask | None) -> Generator[CheckResult, None, bool]:
    """Check the project's Python at the site; return True if it has left its mark where updates are written."""
    what = f"Python, packages and code in {site.python_env} fit those of the driver"
    assert site.endpoint is not None
    if ask is None or not site.endpoint.files:
        yield f"{what}: checked by the first task (there is no files_endpoint)", None
        return False
    try:
        answer = ask(site)
    except CrossfedError as error:
        yield what, str(error)
        return False
    found = compare_versions(json.dumps(answer.get("versions")), by_parsl=False)
    yield f"{what}{found.ending}", found.problem
    yield f"{site.storage_root} and {site.outgoing} can be written at the site", answer.get("storage")
    return answer.get("storage") is None


def _same_folder(check: TransferCheck) -> CheckResult:
    """Check that the collection shows the folder that updates are written to, by the mark in it.

    The first task of a campaign deletes the mark: through the collection the driver may only read there.
    """
    mark = check.collection.path_of(check.site.outgoing / MARK)
    what = f"the collection shows what the site writes in {check.site.outgoing}"
    with check.client() as (caller, trouble):
        try:
            problem = None if path_exists(caller, check.collection.id, mark) else f"not at {mark}"
        except CrossfedError as error:
            problem = trouble.describe(error)
    return what, problem and f"{problem}. Set collection_folder to the folder that the collection shows as /"

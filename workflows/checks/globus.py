"""What a site behind Globus says about itself before a campaign is sent there."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import REASON_LENGTH, CrossfedError
from apps.site import MARK
from site_configs.library.site import Collection, Site
from workflows.checks.login_status import CheckResult, login_status
from workflows.checks.transfer_probe import (
    LastTrouble,
    ProbeTransfer,
    carry,
    clean_up,
    nearest_folder,
    path_exists,
    stop_after,
)
from workflows.globus.identity import compute_client, globus_app, transfer_client
from workflows.globus.transfer.calls import Backoff, RetryingClient

if TYPE_CHECKING:
    from globus_compute_sdk import Client
    from globus_sdk import GlobusApp

LIMIT_S = 90.0  # Globus needs seconds for a small transfer, and minutes where it is busy
OLDEST_AGENT = (4, 10)  # from here on an agent renders a template for each campaign
LOOKING = Backoff(poll_s=0.5, slowest_poll_s=5.0, back_off_s=1.0, longest_back_off_s=10.0)
Ask = Callable[[Site], Mapping[str, Any]]


def check_globus_site(
    site: Site,
    server: Collection | None,
    *,
    work: Path | None = None,
    ask: Ask | None = None,
    app: GlobusApp | None = None,
    limit_s: float = LIMIT_S,
    patience: Backoff = LOOKING,
) -> Iterator[CheckResult]:
    """Questions about a site, and what is wrong, or None. Leaves nothing behind.

    Args:
        site: of the route or the carrier globus.
        server: the driver's own collection; None: the artifacts need none.
        work: a folder below that of the collection, for a file of 1 MB; default the collection's own.
        ask: asks the project's Python at the site for ``{"versions": {...}, "storage": problem or None}``; None: it
            can only be asked by a task in a block.
        app: who asks; default the identity of the environment.
        limit_s: the longest that one question may take.
        patience: between looks at a transfer.

    Raises:
        UserMistake: half of a service account is set.
    """
    app = app or globus_app()
    carried = site.carrier == "globus" and site.collection is not None
    collections = [found.id for found in (server, site.collection) if found] if carried else []
    said = list(login_status(app, collections))
    yield from said
    if any(problem for what, problem in said if not what.startswith("collection ")):
        return  # nobody would be let in
    if site.endpoint:
        yield from _endpoints(site, app)
    if carried:
        yield from _collection(site, server, work, app, limit_s, patience)
    if site.endpoint:
        told = yield from _project(site, ask)
        if carried and told:
            yield _same_folder(app, site, limit_s, patience)


# -- endpoints --------------------------------------------------------------------------------------------------


def _endpoints(site: Site, app: GlobusApp) -> Iterator[CheckResult]:
    assert site.endpoint is not None
    client = compute_client(app)
    for role, endpoint in (("that trains", site.endpoint.training), ("for files", site.endpoint.files)):
        if endpoint:
            yield check_endpoint(client, role, endpoint)


def check_endpoint(client: Client, role: str, endpoint: str) -> CheckResult:
    """Whether an endpoint's agent is there, and which one it is."""
    from globus_sdk import GlobusAPIError, NetworkError

    name = f"endpoint {role} ({endpoint})"
    try:
        facts, status = client.get_endpoint_metadata(endpoint), client.get_endpoint_status(endpoint)
    except GlobusAPIError as error:
        hints = {403: "it obeys another identity", 404: "there is none with this id"}
        return name, hints.get(error.http_status, f"Globus refuses: {error.http_status} {error.code}")
    except NetworkError as error:
        return name, f"Globus is not reached: {str(error)[:REASON_LENGTH]}"
    except CrossfedError as error:
        return name, str(error)
    agent = str(facts.get("endpoint_version") or "")
    host = f" on {facts['hostname']}" if facts.get("hostname") else ""
    if status.get("status") != "online":
        return name, f"it is {status.get('status')}. Start its agent{host}: ./endpoints.sh start"
    if agent and version_of(agent) < OLDEST_AGENT:
        wanted = ".".join(map(str, OLDEST_AGENT))
        return name, f"its agent is {agent}, needed is {wanted} or later. Update globus-compute-endpoint there"
    return f"{name} is online, agent {agent or 'of unknown version'}{host}", None


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


# -- collections ------------------------------------------------------------------------------------------------


def _collection(
    site: Site, server: Collection | None, work: Path | None, app: GlobusApp, limit_s: float, patience: Backoff
) -> Iterator[CheckResult]:
    """Whether the site's storage can be read and written by Transfer, to the end that a file is the same again."""
    there = site.collection
    assert there is not None
    trouble = LastTrouble()
    probe = ""
    with stop_after(limit_s) as stop:
        ids = [found.id for found in (server, there) if found]
        caller = RetryingClient(lambda: transfer_client(app, ids), patience, stop, trouble.note)
        try:
            above = nearest_folder(caller, there.id, there.path_of(site.storage_root))
            yield f"collection shows {above}, where the site's storage goes", None
            probe = f"{above.rstrip('/')}/.crossfed-probe-{secrets.token_hex(4)}"
            caller(lambda client: client.operation_mkdir(there.id, probe))
            yield f"collection can be written in {above}", None
        except (CrossfedError, ValueError) as error:
            yield f"collection {there.id} can be read and written", trouble.words(error)
    if probe:
        try:
            yield _round_trip(app, site, server, work, probe, limit_s, patience)
        finally:
            clean_up(app, there.id, probe, limit_s, patience)


def _round_trip(
    app: GlobusApp,
    site: Site,
    server: Collection | None,
    work: Path | None,
    probe: str,
    limit_s: float,
    patience: Backoff,
) -> CheckResult:
    """1 MB to the site and back, with the seconds that it takes; its files here are removed."""
    name = "1 MB goes to the site and comes back"
    if server is None:
        return name, "the driver has no collection. Set globus.collection and globus.folder in the campaign"
    assert site.collection is not None
    trip = ProbeTransfer(server, site.collection, work or server.folder, probe)
    files = [trip.work / f".crossfed-probe-{os.getpid()}-{way}" for way in ("out", "back")]
    trouble = LastTrouble()
    with stop_after(limit_s) as stop:
        ids = [server.id, site.collection.id]
        caller = RetryingClient(lambda: transfer_client(app, ids), patience, stop, trouble.note)
        try:
            seconds = carry(caller, trip, files[0], files[1], limit_s, trouble)
        except (CrossfedError, ValueError) as error:
            return name, trouble.words(error)
        except OSError as error:
            return name, f"{error.strerror} ({error.filename})"
        finally:
            for file in files:
                file.unlink(missing_ok=True)
    return f"1 MB goes to the site in {seconds[0]:.1f} s and back in {seconds[1]:.1f} s, its SHA-256 unchanged", None


# -- the project at the site ------------------------------------------------------------------------------------


def _project(site: Site, ask: Ask | None) -> Generator[CheckResult, None, bool]:
    """What the project's Python there says; whether it has left its mark in the storage."""
    from apps.base.versions import versions_problem

    what = f"Python, packages and code in {site.python_env} are those of the driver"
    assert site.endpoint is not None
    if ask is None or not site.endpoint.files:
        yield f"{what}: asked by the first task (there is no files_endpoint)", None
        return False
    try:
        told = ask(site)
    except CrossfedError as error:
        yield what, str(error)
        return False
    yield what, versions_problem(json.dumps(told.get("versions")))
    yield f"storage {site.storage_root} can be written at the site", told.get("storage")
    return told.get("storage") is None


def _same_folder(app: GlobusApp, site: Site, limit_s: float, patience: Backoff) -> CheckResult:
    """Whether the collection shows the folder that the site's tasks write to, by the mark that they have left there."""
    assert site.collection is not None
    there, trouble = site.collection, LastTrouble()
    mark = there.path_of(site.storage_root / MARK)
    what = f"the collection shows what the site writes in {site.storage_root}"
    with stop_after(limit_s) as stop:
        caller = RetryingClient(lambda: transfer_client(app, [there.id]), patience, stop, trouble.note)
        try:
            seen = caller(lambda client: path_exists(client, there.id, mark))
        except CrossfedError as error:
            return what, trouble.words(error)
    if not seen:
        return what, f"not at {mark}. Set collection_folder to the folder that the collection shows as /"
    clean_up(app, there.id, mark, limit_s, patience)
    return what, None

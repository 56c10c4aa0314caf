"""Who is logged in at Globus, which consents are there, which are missing; no token is ever among the words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from globus_sdk import AuthClient, GlobusAPIError, GlobusApp, TransferClient
from globus_sdk.exc import NetworkError
from globus_sdk.scopes import AuthScopes, ComputeScopes, GCSCollectionScopes, TransferScopes

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.globus.identity import (
    LOGIN,
    SECRETS,
    LoginNeeded,
    ServiceAccountApp,
    globus_app,
    https_authorizer,
    needs_data_access,
)

CheckResult = tuple[str, str | None]  # what was looked at, and what is wrong with it, or None
SERVICES = {"Globus Compute": ComputeScopes.resource_server, "Globus Transfer": TransferScopes.resource_server}


def require_services(app: GlobusApp, names: bool = False) -> None:
    """Let the app want tokens for what every campaign needs.

    Args:
        app: the one to tell.
        names: also the right to know what the person is called.
    """
    auth = [AuthScopes.openid, AuthScopes.profile] if names else [AuthScopes.openid]
    app.add_scope_requirements(
        {
            ComputeScopes.resource_server: [ComputeScopes.all],
            TransferScopes.resource_server: [TransferScopes.all],
            AuthScopes.resource_server: auth,
        }
    )


def login_problem() -> str | None:
    """Why nobody could ask Globus for anything, or None. A person's login is looked for here; Globus is not asked."""
    app = globus_app()
    if isinstance(app, ServiceAccountApp):
        return None
    require_services(app)
    try:
        for server in (ComputeScopes.resource_server, TransferScopes.resource_server):
            app.get_authorizer(server)
    except LoginNeeded as error:
        return f"{error.what}. Log in: {LOGIN} --campaign FILE; or for a service account set {SECRETS}"
    return None


def require_collections(app: GlobusApp, collections: Iterable[str]) -> None:
    """Let the app want the consents that these collections need.

    Raises:
        LoginNeeded: nobody is logged in who could ask what the collections are.
        GlobusAPIError: there is no such collection.
    """
    client = TransferClient(app=app)
    wanted = [found for collection in collections for found in scopes_for(client, collection)]
    for resource_server, scope in wanted:  # only now: a client is refused as long as one of them is missing
        app.add_scope_requirements({resource_server: [scope]})


def scopes_for(client: TransferClient, collection: str) -> Iterator[tuple[str, Any]]:
    """Resource server and scope of each consent that a collection needs or can do with."""
    scopes = GCSCollectionScopes(collection)
    if needs_data_access(client, collection):
        yield TransferScopes.resource_server, TransferScopes.all.with_dependency(scopes.data_access.with_optional(True))
    if client.get_endpoint(collection).get("https_server"):
        yield collection, scopes.https


def identity_text(app: GlobusApp) -> str:
    """The identity in words.

    Raises:
        LoginNeeded: there is none.
    """
    told = PlainAuthClient(app=app).userinfo()
    name = told.get("preferred_username") or "somebody"
    kind = "service account" if isinstance(app, ServiceAccountApp) else "person"
    place = "in memory" if isinstance(app, ServiceAccountApp) else f"in {app.config.token_storage.filepath}"  # type: ignore[union-attr]
    return f"{name} ({kind}, identity {told['sub']}), tokens {place}"


def login_status(app: GlobusApp, collections: Iterable[str] = ()) -> Iterator[CheckResult]:
    """What there is for the services and for collections; asks nobody.

    Args:
        app: as ``globus_app`` makes it.
        collections: ids.
    """
    require_services(app)
    problem = _tried(lambda: identity_text(app))
    if isinstance(problem, CrossfedError):
        yield "login", str(problem)
        return
    yield f"login: {problem}", None
    for name, resource_server in SERVICES.items():
        found = _tried(lambda: _fresh(app, resource_server))  # noqa: B023
        yield (f"{name}: {_life(app, resource_server)}", None) if found is None else (name, str(found))
    for collection in dict.fromkeys(collections):
        yield from _tried_all(app, collection)


def _tried_all(app: GlobusApp, collection: str) -> Iterator[CheckResult]:
    found = _tried(lambda: list(_collection(app, collection)))
    if isinstance(found, CrossfedError):
        yield f"collection {collection}", str(found)
    else:
        yield from found


def _tried(question: Any) -> Any:
    """The answer to a question, or the error that came instead."""
    try:
        return question()
    except CrossfedError as error:
        return error
    except NetworkError as error:
        return CrossfedError(f"Globus is not reached: {str(error)[:REASON_LENGTH]}")
    except GlobusAPIError as error:
        return CrossfedError(f"Globus refuses: {error.http_status} {error.code}: {str(error.message)[:REASON_LENGTH]}")


def _fresh(app: GlobusApp, resource_server: str) -> None:
    """Get a token, a new one if the old one is too old."""
    app.get_authorizer(resource_server).get_authorization_header()


def _life(app: GlobusApp, resource_server: str) -> str:
    held = app.token_storage.token_storage.get_token_data(resource_server)
    until = datetime.fromtimestamp(held.expires_at_seconds).strftime("%Y-%m-%d %H:%M") if held else "its first use"
    lasts = "" if isinstance(app, ServiceAccountApp) else "; the login lasts for six months from its last use"
    return f"token until {until}, renewed by itself{lasts}"


def _collection(app: GlobusApp, collection: str) -> Iterator[CheckResult]:
    client = TransferClient(app=app)
    facts = client.get_endpoint(collection)
    name = f"collection {facts.get('display_name') or 'without a name'} ({collection})"
    wanted = list(scopes_for(client, collection))
    if not any(resource_server == TransferScopes.resource_server for resource_server, _ in wanted):
        yield f"{name}: needs no consent for transfers", None
    remedy = f"{LOGIN} --collection {collection}"
    for resource_server, scope in wanted:
        if resource_server == TransferScopes.resource_server:
            given = isinstance(app, ServiceAccountApp) or _consented(app, scope)
            yield f"{name}: consent to transfers", None if given else f"not given yet. Give it: {remedy}"
        else:
            found = _tried(lambda: https_authorizer(app, collection).get_authorization_header())
            missing = f"not given yet. Give it: {remedy}" if isinstance(found, CrossfedError) else None
            yield f"{name}: consent to read files by HTTPS", missing


def _consented(app: GlobusApp, scope: Any) -> bool:
    """Whether a person has consented to a scope and to what depends on it."""
    client = PlainAuthClient(app=app)
    held = app.token_storage.identity_id or client.userinfo()["sub"]
    return client.get_consents(held).to_forest().meets_scope_requirements([scope])


class PlainAuthClient(AuthClient):
    """Wants no more than every login has; globus-sdk's own wants the name and the address of a person too."""

    default_scope_requirements = [AuthScopes.openid]  # noqa: RUF012

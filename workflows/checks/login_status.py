"""Status of the Globus login and of its consents; tokens are never part of a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from globus_sdk import AuthClient, GlobusAPIError, GlobusApp, TransferClient
from globus_sdk.exc import NetworkError
from globus_sdk.scopes import AuthScopes, ComputeScopes, GCSCollectionScopes, TransferScopes

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.globus.identity import ServiceAccountApp, globus_app, https_authorizer, needs_data_access
from workflows.globus.remedies import LOGIN, SECRETS, LoginNeeded

CheckResult = tuple[str, str | None]  # what was checked, and its problem or None
SERVICES = {"Globus Compute": ComputeScopes.resource_server, "Globus Transfer": TransferScopes.resource_server}


def require_services(app: GlobusApp, names: bool = False) -> None:
    """Add the scopes that every campaign needs.

    Args:
        app: the identity.
        names: True to add the scope for the person's name.
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
    """Return why requests to Globus would be refused, or None. Reads a person's stored login; makes no request."""
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
    """Add the consents that these collections need.

    Raises:
        LoginNeeded: no login with which to read what the collections are.
        GlobusAPIError: there is no such collection.
    """
    client = TransferClient(app=app)
    wanted = [found for collection in collections for found in scopes_for(client, collection)]
    for resource_server, scope in wanted:  # only now: a client is refused as long as one of them is missing
        app.add_scope_requirements({resource_server: [scope]})


def scopes_for(client: TransferClient, collection: str) -> Iterator[tuple[str, Any]]:
    """Yield resource server and scope of each consent that a collection needs or supports."""
    scopes = GCSCollectionScopes(collection)
    if needs_data_access(client, collection):
        yield TransferScopes.resource_server, TransferScopes.all.with_dependency(scopes.data_access.with_optional(True))
    if client.get_endpoint(collection).get("https_server"):
        yield collection, scopes.https


def identity_text(app: GlobusApp) -> str:
    """Return name, kind and id of the identity, and where its tokens are.

    Raises:
        LoginNeeded: there is none.
    """
    user = PlainAuthClient(app=app).userinfo()
    name = user.get("preferred_username") or "name unknown"
    kind = "service account" if isinstance(app, ServiceAccountApp) else "person"
    place = "in memory" if isinstance(app, ServiceAccountApp) else f"in {app.config.token_storage.filepath}"  # type: ignore[union-attr]
    return f"{name} ({kind}, identity {user['sub']}), tokens {place}"


def login_status(app: GlobusApp, collections: Iterable[str] = ()) -> Iterator[CheckResult]:
    """Yield the status of tokens and consents; never prompts.

    Args:
        app: as ``globus_app`` makes it.
        collections: ids.
    """
    require_services(app)
    identity = _tried(lambda: identity_text(app))
    if isinstance(identity, CrossfedError):
        yield "login", str(identity)
        return
    yield f"login: {identity}", None
    for name, resource_server in SERVICES.items():
        problem = _tried(lambda: _get_token(app, resource_server))  # noqa: B023
        yield (f"{name}: {_validity(app, resource_server)}", None) if problem is None else (name, str(problem))
    for collection in dict.fromkeys(collections):
        yield from _collection(app, collection)


def _collection(app: GlobusApp, collection: str) -> Iterator[CheckResult]:
    found = _tried(lambda: list(_consents(app, collection)))
    if isinstance(found, CrossfedError):
        yield f"collection {collection}", str(found)
    else:
        yield from found


def _tried(request: Callable[[], Any]) -> Any:
    """Return the result of a request, or its error."""
    try:
        return request()
    except CrossfedError as error:
        return error
    except NetworkError as error:
        return CrossfedError(f"Globus is not reached: {str(error)[:REASON_LENGTH]}")
    except GlobusAPIError as error:
        return CrossfedError(f"Globus refuses: {error.http_status} {error.code}: {str(error.message)[:REASON_LENGTH]}")


def _get_token(app: GlobusApp, resource_server: str) -> None:
    """Get a token, which renews an expired one."""
    app.get_authorizer(resource_server).get_authorization_header()


def _validity(app: GlobusApp, resource_server: str) -> str:
    held = app.token_storage.token_storage.get_token_data(resource_server)
    until = datetime.fromtimestamp(held.expires_at_seconds).strftime("%Y-%m-%d %H:%M") if held else "its first use"
    lasts = "" if isinstance(app, ServiceAccountApp) else "; the login lasts for six months from its last use"
    return f"token until {until}, renewed automatically{lasts}"


def _consents(app: GlobusApp, collection: str) -> Iterator[CheckResult]:
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
    """Return True if a person has consented to a scope and to the scopes that it depends on."""
    client = PlainAuthClient(app=app)
    held = app.token_storage.identity_id or client.userinfo()["sub"]
    return client.get_consents(held).to_forest().meets_scope_requirements([scope])


class PlainAuthClient(AuthClient):
    """Auth client for the scope that every login has; globus-sdk's own needs a person's name and address too."""

    default_scope_requirements = [AuthScopes.openid]  # noqa: RUF012 - as in the base class, which does not annotate it

"""Identity of a campaign at Globus: a person who has logged in once, or a service account; never an interactive prompt.

Both have tokens that are renewed automatically: a service account by its secret, from ``GLOBUS_COMPUTE_CLIENT_ID`` and
``GLOBUS_COMPUTE_CLIENT_SECRET``, with tokens in memory only; a person by refresh tokens in the file that Globus
Compute's own tools use, so that one login serves both. Only ``workflows/login.py`` prompts.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from globus_compute_sdk import Client
from globus_compute_sdk.sdk.auth.client_login import get_client_creds
from globus_compute_sdk.sdk.auth.globus_app import DEFAULT_CLIENT_ID
from globus_compute_sdk.sdk.auth.token_storage import get_token_storage
from globus_sdk import (
    AuthAPIError,
    AuthLoginClient,
    ClientApp,
    GlobusApp,
    GlobusAppConfig,
    OAuthTokenResponse,
    TransferClient,
    UserApp,
)
from globus_sdk.authorizers import GlobusAuthorizer
from globus_sdk.gare import GlobusAuthorizationParameters
from globus_sdk.login_flows import LoginFlowManager
from globus_sdk.scopes import GCSCollectionScopes
from globus_sdk.token_storage import TokenValidationError
from globus_sdk.token_storage.validating_token_storage import UnmetScopeRequirementsError
from globus_sdk.transport import RequestsTransport

from apps.base.errors import UserMistake
from workflows.globus.remedies import LOGIN, SECRETS, LoginNeeded
from workflows.globus.transfer.calls import HTTP_TIMEOUT_S

MAPPED = "GCSv5_mapped_collection"


def globus_app(flow: type[LoginFlowManager] | None = None) -> GlobusApp:
    """Return the app whose tokens authorise every request; it may be used by several threads.

    Args:
        flow: prompts for a login; None: raise ``LoginNeeded`` instead.

    Raises:
        UserMistake: half of a service account is set.
    """
    client_id, secret = get_client_creds()
    if client_id and secret:
        return ServiceAccountApp(
            client_id=client_id,
            client_secret=secret,
            app_name=platform.node(),
            config=GlobusAppConfig(token_storage="memory"),
        )
    if secret:
        raise UserMistake(
            "GLOBUS_COMPUTE_CLIENT_SECRET is set without GLOBUS_COMPUTE_CLIENT_ID",
            remedy="Set both for a service account, or none for a person",
        )
    storage = get_token_storage()
    keep_private(Path(storage.filepath))
    config = GlobusAppConfig(
        token_storage=storage,
        request_refresh_tokens=True,
        token_validation_error_handler=None,
        login_flow_manager=flow or NonInteractiveLogin,  # type: ignore[arg-type]
    )
    return LoginApp(client_id=client_id or DEFAULT_CLIENT_ID, app_name=platform.node(), config=config)


def has_login() -> bool:
    """Return True if this machine has a service account's secret or a file with a person's tokens."""
    folder = os.environ.get("GLOBUS_COMPUTE_USER_DIR") or Path.home() / ".globus_compute"
    return all(get_client_creds()) or (Path(folder) / "storage.db").is_file()


def keep_private(storage: Path) -> None:
    """Restrict the file with tokens and its folder to their owner."""
    storage.parent.chmod(0o700)
    storage.chmod(0o600)


def compute_client(app: GlobusApp, **settings: Any) -> Client:
    """Return the client of Globus Compute.

    Args:
        app: the identity.
        settings: further arguments of the client: ``code_serialization_strategy``, ``data_serialization_strategy``.
    """
    return Client(app=app, do_version_check=False, **settings)


def transfer_client(app: GlobusApp, collections: Iterable[str] = ()) -> TransferClient:
    """Return a client of Globus Transfer for one thread.

    Args:
        app: the identity.
        collections: ids of those it will read or write; requests the consents that they need.

    Raises:
        LoginNeeded: a login or a consent is missing.
    """
    client = TransferClient(app=app, transport=RequestsTransport(http_timeout=HTTP_TIMEOUT_S))
    wanting = [collection for collection in dict.fromkeys(collections) if needs_data_access(client, collection)]
    if wanting:
        client.add_app_data_access_scope(wanting)
    return client


def needs_data_access(client: TransferClient, collection: str) -> bool:
    """Return True if Transfer needs a consent to use a collection: a mapped one that is not of high assurance.

    Requesting it for any other kind is an error (globus-sdk, ``add_app_data_access_scope``).
    """
    facts = client.get_endpoint(collection)
    return bool(facts.get("entity_type") == MAPPED and not facts.get("high_assurance"))


def https_authorizer(app: GlobusApp, collection: str) -> GlobusAuthorizer:
    """Return the authorizer of GET and PUT at a collection's own web address.

    Raises:
        LoginNeeded: a consent is missing.
    """
    scope = GCSCollectionScopes(collection).https
    known = [str(wanted) for wanted in app.scope_requirements.get(collection, [])]
    if str(scope) not in known:
        app.add_scope_requirements({collection: [scope]})
    return app.get_authorizer(collection)


def collections_in(scopes: Iterable[str]) -> list[str]:
    """Return the collections whose consent is among scopes, each once."""
    parts = " ".join(scopes).replace("[", " ").replace("]", " ").split()
    return list(dict.fromkeys(part.split("/")[-2] for part in parts if part.endswith("/data_access")))


def login_needed(error: Exception, collections: Iterable[str] = ()) -> LoginNeeded:
    """Return the error for a missing token, with the command that gives it."""
    if isinstance(error, UnmetScopeRequirementsError):
        named = "".join(f" --collection {collection}" for collection in collections)
        return LoginNeeded("Globus: a consent is missing", remedy=f"Give it: {LOGIN}{named}")
    return LoginNeeded("Globus: not logged in, or not for all that is needed", remedy=f"Log in: {LOGIN}")


def refused(error: AuthAPIError, app: GlobusApp) -> Exception:
    """Return the error for tokens that could not be renewed; a network error is returned unchanged."""
    if error.http_status not in (400, 401, 403):
        return error
    if isinstance(app, ServiceAccountApp):
        return UserMistake(
            f"Globus refuses the service account {app.client_id}", remedy=f"Set {SECRETS} to valid values"
        )
    return LoginNeeded("Globus: the login has expired or was revoked", remedy=f"Log in: {LOGIN}")


class NonInteractiveLogin(LoginFlowManager):
    """Login flow that raises instead of prompting: a campaign runs for days unattended."""

    @classmethod
    def for_globus_app(
        cls, app_name: str, login_client: AuthLoginClient, config: GlobusAppConfig
    ) -> NonInteractiveLogin:
        del app_name  # of the SDK's interface, not used here
        return cls(login_client, request_refresh_tokens=config.request_refresh_tokens)

    def run_login_flow(self, auth_parameters: GlobusAuthorizationParameters) -> OAuthTokenResponse:
        wanted = collections_in(map(str, auth_parameters.required_scopes or []))
        extra = "".join(f" --collection {collection}" for collection in wanted)
        message = f" ({auth_parameters.session_message})" if auth_parameters.session_message else ""
        raise LoginNeeded(f"Globus requires a login{message}", remedy=f"Log in: {LOGIN}{extra}")


class ThreadSafeApp(GlobusApp):
    """App for several threads: access to its tokens is serialised, which globus-sdk's own apps do not do."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._lock = threading.RLock()
        super().__init__(*args, **settings)

    def get_authorizer(self, resource_server: str) -> GlobusAuthorizer:
        with self._lock:
            try:
                return ThreadSafeAuthorizer(super().get_authorizer(resource_server), self, self._lock)
            except TokenValidationError as error:
                if not self._token_validation_error_handling_enabled:
                    raise  # the SDK itself called, and handles this error
                raise login_needed(error, self._wanting(resource_server)) from None
            except AuthAPIError as error:
                raise refused(error, self) from None

    def _wanting(self, resource_server: str) -> list[str]:
        return collections_in(map(str, self._scope_requirements.get(resource_server, [])))

    def add_scope_requirements(self, scope_requirements: Any) -> None:
        with self._lock:
            super().add_scope_requirements(scope_requirements)

    def login(self, *, auth_params: GlobusAuthorizationParameters | None = None, force: bool = False) -> None:
        with self._lock:
            super().login(auth_params=auth_params, force=force)

    def logout(self, *, sweep: bool = False) -> None:
        with self._lock:
            super().logout(sweep=sweep)


class LoginApp(ThreadSafeApp, UserApp):
    """App of a person who has logged in; the refresh tokens expire after six months without use."""


class ServiceAccountApp(ThreadSafeApp, ClientApp):
    """App of a service account; it gives a consent by requesting a token with it."""

    def add_scope_requirements(self, scope_requirements: Any) -> None:
        """Add scopes and drop a token from before a new consent, which globus-sdk would keep using for days."""
        with self._lock:
            before = {server: {str(scope) for scope in scopes} for server, scopes in self.scope_requirements.items()}
            super().add_scope_requirements(scope_requirements)
            for server, scopes in self.scope_requirements.items():
                fresh = [scope for scope in scopes if str(scope) not in before.get(server, set())]
                if any(scope.dependencies for scope in fresh):
                    self.token_storage.remove_token_data(server)


class ThreadSafeAuthorizer(GlobusAuthorizer):
    """Authorizer that renews a token in one thread at a time and converts a refusal to our errors."""

    def __init__(self, inner: GlobusAuthorizer, app: GlobusApp, lock: AbstractContextManager[Any]) -> None:
        self._inner, self._app, self._lock = inner, app, lock

    def get_authorization_header(self) -> str | None:
        with self._lock:
            try:
                return self._inner.get_authorization_header()
            except AuthAPIError as error:
                raise refused(error, self._app) from None

    def handle_missing_authorization(self) -> bool:
        with self._lock:
            return self._inner.handle_missing_authorization()

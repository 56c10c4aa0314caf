"""Globus Auth: service accounts, users who log in with a code, tokens with a lifetime that a test sets.

Tokens are kept in this object only and remain valid over a stop and start of its service.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from typing import Any

from facilities.globus.consents import COMPUTE_SERVER, Consents, by_resource_server
from facilities.globus.http import Answer, HttpService, RefusalError, Request, refuse
from facilities.globus.identity_tokens import IdentityTokens

__all__ = ["AUTH_SERVER", "COMPUTE_SERVER", "TRANSFER_SERVER", "Auth", "ServiceAccount", "Token"]

AUTH_SERVER = "auth.globus.org"
TRANSFER_SERVER = "transfer.api.globus.org"
TWO_DAYS_S = 172_800.0
CODE_PAGE = "/v2/web/auth-code"


@dataclass(frozen=True)
class ServiceAccount:
    """A confidential client that acts for itself; its client id is its identity."""

    client_id: str
    secret: str


@dataclass(frozen=True)
class Token:
    """An access token: its identity, client and service."""

    subject: str
    client_id: str
    resource_server: str
    scope: str
    expires_at: float


@dataclass(frozen=True)
class _Login:
    """A code that is not exchanged yet."""

    subject: str
    client_id: str
    scope: str
    challenge: str
    redirect_uri: str
    offline: bool


class Auth:
    """Routes of Globus Auth on a service.

    Attributes:
        lifetime_s: lifetime of the next access tokens.
        person: identity that is logged in in the "browser"; ``None`` refuses every user login.
        consents: consents of the identities; see ``Consents``.
    """

    def __init__(self, service: HttpService, lifetime_s: float = TWO_DAYS_S) -> None:
        self.lifetime_s, self.person, self.consents = lifetime_s, None, Consents()
        self._service, self._identity_tokens = service, IdentityTokens()
        self._names: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._tokens: dict[str, Token] = {}
        self._refresh: dict[str, Token] = {}
        self._codes: dict[str, _Login] = {}
        for method, pattern, handler in (
            ("POST", "/v2/oauth2/token", self._token),
            ("POST", "/v2/oauth2/token/revoke", self._revoke),
            ("GET", "/v2/oauth2/authorize", self._authorize),
            ("GET", CODE_PAGE, lambda request: {"code": request.query.get("code")}),
            ("GET", "/v2/oauth2/userinfo", self._user_info),
            ("GET", "/v2/api/identities", self._identities),
            ("GET", "/v2/api/identities/([^/]+)/consents", self._consents),
            ("GET", "/.well-known/openid-configuration", self._openid_configuration),
            ("GET", "/jwk.json", lambda _: self._identity_tokens.public_keys()),
            ("POST", "/_ctl/auth", self._control),
        ):
            service.route(method, pattern, handler)

    person: str | None

    def add_service_account(self) -> ServiceAccount:
        account = ServiceAccount(str(uuid.uuid4()), secrets.token_urlsafe(12))
        self._secrets[account.client_id] = account.secret
        self._names[account.client_id] = f"{account.client_id}@clients.auth.globus.org"
        return account

    def add_person(self, username: str) -> str:
        """Add the identity of a user, who is then logged in in the "browser"; return its id."""
        self.person = str(uuid.uuid4())
        self._names[self.person] = username
        return self.person

    def expire_tokens(self) -> None:
        """Make all access tokens invalid; refresh tokens stay valid."""
        self._tokens.clear()

    def forget_refresh_tokens(self) -> None:
        """Make all refresh tokens invalid: users must log in again."""
        self._refresh.clear()

    def change_secret(self, account: ServiceAccount) -> ServiceAccount:
        """Change the secret of an account; the old one is refused from now on."""
        self._secrets[account.client_id] = secrets.token_urlsafe(12)
        return ServiceAccount(account.client_id, self._secrets[account.client_id])

    def log_in(self, authorize_url: str) -> str:
        """Do what a user does in the browser: open the address, consent, return the code."""
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(authorize_url).query))
        return self._new_code(query)

    def token_of(self, request: Request, resource_server: str) -> Token:
        """Return the access token of a request for a service; raise the services' 401 without one."""
        token = self._tokens.get(request.bearer() or "")
        if token is None or token.expires_at < time.time() or token.resource_server != resource_server:
            raise refuse(401, "AuthenticationFailed", f"token missing, expired or not for {resource_server}")
        return token

    def identity(self, subject: str) -> dict[str, Any]:
        """Return an identity in the form of Globus Auth."""
        username = self._names.get(subject, f"{subject}@clients.auth.globus.org")
        named = {"sub": subject, "id": subject, "username": username, "preferred_username": username}
        provider = "00000000-0000-4000-8000-000000000001"
        return named | {"name": username, "email": None, "identity_provider": provider, "status": "used"}

    def _token(self, request: Request) -> Any:
        form = request.form()
        grants = {
            "client_credentials": self._own,
            "refresh_token": self._renewed,
            "authorization_code": self._exchanged,
        }
        if form.get("grant_type") not in grants:
            raise oauth_error("unsupported_grant_type")
        return grants[form["grant_type"]](request, form)

    def _own(self, request: Request, form: dict[str, str]) -> Any:
        client_id = self._client_of(request, form)
        self.consents.give(client_id, client_id, form["scope"])
        return self._granted(client_id, client_id, form["scope"], offline=False)

    def _renewed(self, request: Request, form: dict[str, str]) -> Any:
        old = self._refresh.get(form["refresh_token"])
        if old is None or old.client_id != self._client_of(request, form):
            raise oauth_error("invalid_grant")
        answer = self._granted(old.subject, old.client_id, old.scope, offline=False)
        return answer | {"refresh_token": form["refresh_token"]}

    def _exchanged(self, request: Request, form: dict[str, str]) -> Any:
        login = self._codes.pop(form.get("code", ""), None)
        if login is None or login.client_id != self._client_of(request, form):
            raise oauth_error("invalid_grant")
        if login.challenge and login.challenge != challenge_of(form.get("code_verifier", "")):
            raise oauth_error("invalid_grant")
        if login.redirect_uri != form.get("redirect_uri"):
            raise oauth_error("redirect_uri_mismatch")
        self.consents.give(login.subject, login.client_id, login.scope)
        answer = self._granted(login.subject, login.client_id, login.scope, login.offline)
        claims = self.identity(login.subject) | {"aud": login.client_id, "iss": self._service.url}
        return answer | {"id_token": self._identity_tokens.signed(claims, self.lifetime_s)}

    def _client_of(self, request: Request, form: dict[str, str]) -> str:
        """Return the client of a request; a client with a secret must send it, native clients have none."""
        client_id, secret = request.basic() or (form.get("client_id", ""), form.get("client_secret", ""))
        confidential = client_id in self._secrets or form["grant_type"] == "client_credentials"
        if not client_id or (confidential and self._secrets.get(client_id) != secret):
            raise oauth_error("invalid_client", 401)
        return client_id

    def _granted(self, subject: str, client_id: str, scopes: str, offline: bool) -> dict[str, Any]:
        answers = []
        for server, scope in by_resource_server(scopes).items():
            token = Token(subject, client_id, server, scope, time.time() + self.lifetime_s)
            access = secrets.token_urlsafe(24)
            self._tokens[access] = token
            answer = {"access_token": access, "scope": scope, "resource_server": server}
            answer |= {"expires_in": int(self.lifetime_s), "token_type": "Bearer"}
            if offline:
                answer["refresh_token"] = secrets.token_urlsafe(24)
                self._refresh[answer["refresh_token"]] = token
            answers.append(answer)
        return answers[0] | {"other_tokens": answers[1:]}

    def _authorize(self, request: Request) -> Answer:
        fields = {"code": self._new_code(request.query), "state": request.query.get("state", "")}
        return Answer("", 302, {"Location": f"{request.query['redirect_uri']}?{urllib.parse.urlencode(fields)}"})

    def _new_code(self, query: Any) -> str:
        if self.person is None:
            raise refuse(403, "access_denied", "no user is logged in")
        code, offline = secrets.token_urlsafe(16), query.get("access_type") == "offline"
        challenge, redirect_uri = query.get("code_challenge", ""), query["redirect_uri"]
        self._codes[code] = _Login(self.person, query["client_id"], query["scope"], challenge, redirect_uri, offline)
        return code

    def _revoke(self, request: Request) -> Any:
        token = request.form().get("token", "")
        self._tokens.pop(token, None)
        self._refresh.pop(token, None)
        return {"active": False}

    def _user_info(self, request: Request) -> Any:
        me = self.identity(self.token_of(request, AUTH_SERVER).subject)
        return me | {"identity_set": [me]}

    def _identities(self, request: Request) -> Any:
        self.token_of(request, AUTH_SERVER)
        wanted = [subject for subject in request.query.get("ids", "").split(",") if subject]
        named = request.query.get("usernames", "").split(",")
        wanted += [subject for subject, username in self._names.items() if username in named]
        return {"identities": [self.identity(subject) for subject in wanted]}

    def _consents(self, request: Request, subject: str) -> Any:
        token = self.token_of(request, AUTH_SERVER)
        if token.subject != subject:
            raise refuse(403, "FORBIDDEN", "consents of another identity")
        return {"consents": self.consents.rows(subject, token.client_id)}

    def _openid_configuration(self, _: Request) -> Any:
        address = self._service.url
        signing = {"jwks_uri": f"{address}/jwk.json", "id_token_signing_alg_values_supported": ["RS512"]}
        return {"issuer": address, "token_endpoint": f"{address}/v2/oauth2/token", **signing}

    def _control(self, request: Request) -> Any:
        """Change settings: ``{"lifetime_s": 5, "expire_tokens": true, "forget_refresh_tokens": true}``."""
        wanted = request.json()
        self.lifetime_s = wanted.get("lifetime_s", self.lifetime_s)
        for action in (self.expire_tokens, self.forget_refresh_tokens):
            if wanted.get(action.__name__):
                action()


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of RFC 7636."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def oauth_error(error: str, status: int = 400) -> RefusalError:
    return RefusalError(Answer({"error": error}, status))

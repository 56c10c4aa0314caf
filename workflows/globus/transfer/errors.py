"""What Globus answers when something does not go, as errors that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from apps.base.errors import CrossfedError

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError

LOGIN = "python workflows/login.py"
BUSY = (408, 425, 429)  # besides all of 5xx: the same call may well succeed later
FULL = "TooManyPendingJobs"


class TransferFailed(CrossfedError):  # noqa: N818
    """A transfer has ended without success, or cannot be begun; the files it was for may be there in part."""


class TransferCanceled(TransferFailed):
    """Somebody has ended the transfer; it is not begun again without being asked for."""


class TransferRefused(TransferFailed):
    """Globus does not take the transfer; the same request would be refused again."""


class ConsentMissing(TransferRefused):
    """Globus Transfer may not use a collection for this identity before it has agreed to that."""


class LoginMissing(TransferRefused):
    """Globus does not know who asks: never logged in, tokens lapsed, or a secret that is not right any more."""


class TransferDetached(CrossfedError):  # noqa: N818
    """The driver stops; what it waited for goes on without it."""


def is_transient(error: Exception) -> bool:
    """Whether a call may succeed when it is made again later."""
    from globus_sdk import GlobusAPIError, NetworkError

    if isinstance(error, GlobusAPIError):
        return error.http_status >= 500 or error.http_status in BUSY or FULL in (error.code or "")
    return isinstance(error, NetworkError)


def wait_asked_s(error: Exception) -> float:
    """How long the service asks to be left alone, in seconds; 0 where it does not say."""
    headers = getattr(error, "headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0


def as_refusal(error: GlobusAPIError) -> TransferRefused:
    """A final answer of a Globus service, with the remedy.

    No part of the request goes into it: a request holds tokens.
    """
    if error.info.consent_required:
        return consent_missing(error.info.consent_required.required_scopes or [])
    if error.http_status == 401 or error.code in ("invalid_client", "invalid_grant"):
        return LoginMissing("Globus does not accept the login", remedy=f"Log in: {LOGIN}")
    said = f"Globus refuses the transfer: {error.message or error.code} (HTTP {error.http_status}, {error.code})"
    return TransferRefused(said, remedy=_remedy(error.code or "", error.http_status))


def consent_missing(scopes: Collection[str]) -> ConsentMissing:
    """The error for consents that are not given, with the command that gives them."""
    ids = sorted({found for scope in scopes for found in re.findall(r"/scopes/([0-9a-f-]{36})/data_access", scope)})
    commands = " ".join(f"--collection {found}" for found in ids)
    named = f"collection{'s' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else "a collection"
    return ConsentMissing(
        f"Globus Transfer has no consent to use {named}", remedy=f"Agree once: {LOGIN} {commands}".rstrip()
    )


def _remedy(code: str, status: int) -> str:
    if "CredentialsExpired" in code:
        return "Renew the collection's credentials in the Globus web app, then resume"
    if status == 403:
        return "Ask the collection's owner for read and write access for this identity, then resume"
    if status == 404:
        return "Check the collection's id in the campaign (site setting 'collection', or 'globus.collection')"
    return "See app.globus.org/activity, then resume"

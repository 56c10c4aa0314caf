"""Failures that Globus Transfer reports, as errors with a remedy."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from apps.base.errors import CrossfedError
from workflows.globus.remedies import LOGIN, login_remedy, session_demand

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError

BUSY = (408, 425, 429)  # besides all of 5xx: the same call may succeed later
FULL = "TooManyPendingJobs"


class TransferFailed(CrossfedError):  # noqa: N818 - named as a state of the transfer, like its subclasses
    """A transfer that ended without success or cannot be started; its files may have arrived in part."""


class TransferPostponed(TransferFailed):
    """A stalled transfer that was cancelled because another waits for its slot; it is submitted again behind that."""


class TransferCanceled(TransferFailed):
    """A transfer that a person has cancelled; it is started again only on request."""


class TransferRefused(TransferFailed):
    """A transfer that Globus does not accept; the same request would be refused again."""


class ConsentMissing(TransferRefused):
    """A missing consent: Globus Transfer may not use a collection for this identity."""


class LoginMissing(TransferRefused):
    """A missing login: never logged in, expired tokens, an invalid secret, or a session that a policy wants renewed."""


class TransferDetached(CrossfedError):  # noqa: N818 - named as a state of the transfer
    """A transfer that the stopping driver no longer waits for; it continues at Globus."""


def is_transient(error: Exception) -> bool:
    """Return True if a call may succeed when it is repeated later."""
    from globus_sdk import GlobusAPIError, NetworkError

    if isinstance(error, GlobusAPIError):
        return error.http_status >= 500 or error.http_status in BUSY or FULL in (error.code or "")
    return isinstance(error, NetworkError)


def retry_after_s(error: Exception) -> float:
    """Return the seconds to wait that the service requests; 0 where it requests none."""
    headers = getattr(error, "headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0


def refusal(error: GlobusAPIError) -> TransferRefused:
    """Convert a final answer of a Globus service to an error with a remedy.

    No part of the request is included: a request holds tokens.
    """
    if error.info.consent_required:
        return consent_missing(error.info.consent_required.required_scopes or [])
    if error.http_status == 401 or error.code in ("invalid_client", "invalid_grant"):
        return LoginMissing("Globus does not accept the login", remedy=login_remedy())
    demand = session_demand(error) if error.http_status == 403 else None
    if demand:
        return LoginMissing(demand[0], remedy=demand[1])
    what = f"Globus refuses the transfer: {error.message or error.code} (HTTP {error.http_status}, {error.code})"
    return TransferRefused(what, remedy=_remedy(error.code or "", error.http_status))


def consent_missing(scopes: Collection[str]) -> ConsentMissing:
    """Return the error for missing consents, with the command that gives them."""
    ids = sorted({found for scope in scopes for found in re.findall(r"/scopes/([0-9a-f-]{36})/data_access", scope)})
    options = " ".join(f"--collection {found}" for found in ids)
    named = f"collection{'s' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else "a collection"
    return ConsentMissing(
        f"Globus Transfer has no consent to use {named}", remedy=f"Agree once: {LOGIN} {options}".rstrip()
    )


def _remedy(code: str, status: int) -> str:
    if "CredentialsExpired" in code:
        return "Renew the collection's credentials in the Globus web app, then resume"
    if status == 403:
        return "Ask the collection's owner for read and write access for this identity, then resume"
    if status == 404:
        return "Check the collection's id in the campaign (site setting 'collection', or 'globus.collection')"
    return "See app.globus.org/activity, then resume"

"""Meaning of a failed request to Globus Compute: try again, later, or whose error it is."""

from __future__ import annotations

from apps.base.errors import EndpointProblem, UserMistake
from workflows.globus.compute.messages import is_restarting, one_line
from workflows.globus.remedies import LOGIN, LoginNeeded, login_remedy, session_demand
from workflows.globus.transfer.calls import error_text

TRANSIENT = (408, 409, 423, 425, 429)  # and all from 500 on
REMEDIES = {
    403: f"Ask the endpoint's owner for access, or run: {LOGIN}",
    404: "Check the endpoint's id; to resume with another one: --set sites.NAME.endpoint=ID",
    422: "Compare the site's settings with what the endpoint's template takes, or run setup_site.py again",
}


class Unreachable(Exception):  # noqa: N818 - a state of the service, not an error of the campaign
    """The service cannot be reached or asks to wait; the request is to be repeated."""


class EndpointNotReady(Exception):  # noqa: N818 - a state of the endpoint, not an error of the campaign
    """The endpoint will accept the call later."""


class ValuesRefused(EndpointProblem):
    """No child endpoint has started: the values do not fit the template, or its last child is taken for alive."""


class FunctionUnknown(Exception):  # noqa: N818 - a state of the service, not an error of the campaign
    """The service does not have the registered function any more."""


def classified(error: Exception) -> Exception:
    """Convert the error of a failed request to the exception that says how to proceed.

    Returns:
        Unreachable: try again later. EndpointNotReady: the same for this call. FunctionUnknown: register again.
        EndpointProblem: the endpoint refuses. LoginNeeded: no request is accepted under this login. UserMistake: this
        request is too large. Any other error unchanged.
    """
    import globus_sdk
    import requests
    from globus_sdk.token_storage import TokenValidationError

    if isinstance(error, TokenValidationError):
        return LoginNeeded(f"Globus: not logged in: {error}", remedy=login_remedy())
    if isinstance(error, globus_sdk.NetworkError | requests.RequestException | OSError):
        return Unreachable(error_text(error))
    if isinstance(error, globus_sdk.GlobusAPIError):
        return _refused(error, isinstance(error, globus_sdk.AuthAPIError))
    if isinstance(error, LookupError | TypeError | ValueError | AttributeError | RecursionError | MemoryError):
        return Unreachable(f"its answer is not understood: {type(error).__name__}")  # a proxy's page, half an answer
    return error


def _refused(error: object, by_auth: bool) -> Exception:
    """Return the meaning of an answer with an error status; ``by_auth``: it is the answer to a request for a token."""
    from globus_sdk import GlobusAPIError

    assert isinstance(error, GlobusAPIError)
    status, whole = error.http_status, error.message or error.text or error.code or ""
    text = one_line(whole)
    if status in TRANSIENT or status >= 500:
        return Unreachable(f"{status}: {text}")
    if status == 401 or by_auth:
        return LoginNeeded(f"Globus does not accept this login: {text}", remedy=login_remedy())
    if status == 404 and "FUNCTION" in (error.code or "").upper():
        return FunctionUnknown(text)
    if is_restarting(whole):  # an agent says so after paths and times of any length
        return EndpointNotReady(text)
    if status == 413:
        return UserMistake(f"Globus Compute refuses the request as too large: {text}")
    demand = session_demand(error) if status == 403 else None
    if demand:
        return EndpointProblem(demand[0], remedy=demand[1])
    kind = ValuesRefused if status == 422 else EndpointProblem
    return kind(f"the endpoint refuses the call ({status}): {text}", remedy=REMEDIES.get(status))

"""The requests to the web service of Globus Compute that a campaign makes, and the meaning of their failures.

Uses the addresses and the login of a ``globus_compute_sdk.Client``, but neither its executor, which stops for good
after one refusal, nor its reading of results, which would unpickle them.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError, EndpointProblem, UserMistake
from workflows.globus.compute.messages import RESULT_SERIALIZERS, is_restarting, one_line
from workflows.globus.compute.registered import (
    bootstrap_source,
    forget_function,
    identity_of,
    known_function,
    remember_function,
)
from workflows.globus.remedies import LOGIN
from workflows.globus.transfer.calls import error_text

if TYPE_CHECKING:
    from globus_compute_sdk import Client

logger = logging.getLogger(__name__)
TRANSIENT = (408, 409, 423, 425, 429)  # and all from 500 on
BATCH = 100  # task ids in one status request
REQUESTS, PERIOD_S = 10, 10.0  # half of what the service allows: the user may have other programs under the same login


class Unreachable(Exception):  # noqa: N818 - a state of the service, not an error of the campaign
    """The service cannot be reached or asks to wait; the request is to be repeated."""


class EndpointNotReady(Exception):  # noqa: N818 - a state of the endpoint, not an error of the campaign
    """The endpoint will accept the call later."""


class FunctionUnknown(Exception):  # noqa: N818 - a state of the service, not an error of the campaign
    """The service does not have the registered function any more."""


class RateLimiter:
    """Limit of requests per period; a call blocks until the next request is allowed."""

    def __init__(
        self,
        requests: int = REQUESTS,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.requests, self.period_s, self.clock, self.sleep = requests, period_s, clock, sleep
        self.recent: list[float] = []

    def __call__(self) -> None:
        now = self.clock()
        self.recent = [moment for moment in self.recent if now - moment < self.period_s]
        if len(self.recent) >= self.requests:
            self.sleep(self.recent[0] + self.period_s - now)
        self.recent.append(self.clock())


class ComputeApi:
    """Client of the service for one thread.

    Args:
        make_client: returns the logged-in client; called at the first request.
        limiter: waits before each request; default ``RateLimiter()``.
    """

    def __init__(self, make_client: Callable[[], Client], limiter: RateLimiter | None = None) -> None:
        self.make_client, self.limiter = make_client, limiter or RateLimiter()
        self._client: Client | None = None
        self._v2: Any = None
        self._v3: Any = None

    def _open(self) -> Client:
        if self._client is None:
            import globus_sdk
            from globus_compute_sdk.serialize import ComputeSerializer, JSONData
            from globus_sdk.transport import RetryConfig
            from globus_sdk.transport.default_retry_checks import check_expired_authorization

            client = self.make_client()
            client.fx_serializer = ComputeSerializer(strategy_data=JSONData())
            login: dict[str, Any] = {"app": client.app} if client.app else {"authorizer": client.authorizer}
            login["base_url"] = client.web_service_address
            self._v2 = globus_sdk.ComputeClientV2(**login, retry_config=RetryConfig(max_retries=1))
            self._v3 = globus_sdk.ComputeClientV3(**login)
            # repeat only after an expired token: a submission that is repeated automatically makes a second task
            self._v3.retry_config = RetryConfig(max_retries=1)
            self._v3.retry_config.checks.register_check(check_expired_authorization)
            self._client = client
        return self._client

    def request(self, call: Callable[[Client], Any]) -> Any:
        """Make one request within the rate limit.

        Raises:
            Unreachable, EndpointNotReady, FunctionUnknown, CrossfedError: see ``classified``.
        """
        self.limiter()
        try:
            return call(self._open())
        except CrossfedError:
            raise
        except Exception as error:
            raise classified(error) from error

    def register(self, used_before: str | None = None, chosen: str | None = None) -> str:
        """Return the id of the bootstrap function, which is registered if this account has never done so.

        Args:
            used_before: id that this run has used earlier.
            chosen: id to be used from now on.
        """
        account = self._account()
        known = chosen or known_function(account) or used_before
        if known is None:
            data = {
                "function_name": "call_site",
                "function_code": bootstrap_source(),
                "serialized": False,
                "meta": {"python_version": platform.python_version(), "sdk_version": _sdk_version()},
            }
            known = str(self.request(lambda _: self._v3.register_function(data))["function_uuid"])
        remember_function(account, known)
        return known

    def _account(self) -> str:
        """Return the service's address and the identity that asks it: a function belongs to both."""
        client = self._open()
        return f"{client.web_service_address} {identity_of(client.app)}"

    def pack(self, function_id: str, request: str, config: Mapping[str, Any]) -> Any:
        """Return a batch of one call."""
        self._open()
        assert self._client
        batch = self._client.create_batch(
            user_endpoint_config=dict(config) or None, result_serializers=RESULT_SERIALIZERS
        )
        batch.add(function_id, (request,))
        return batch

    def submit(self, endpoint: str, function_id: str, request: str, config: Mapping[str, Any]) -> str:
        """Submit a call to an endpoint and return the id of its task."""
        try:
            data = self.request(lambda _: self._v3.submit(endpoint, self.pack(function_id, request, config).prepare()))
        except FunctionUnknown:
            forget_function(self._account())
            raise
        return str(next(iter(data["tasks"].values()))[0])

    def look_up(self, task_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the service's records of tasks; a task that the service does not know is missing."""
        wanted, found = sorted(task_ids), {}
        for first in range(0, len(wanted), BATCH):
            part = wanted[first : first + BATCH]
            try:
                records = self.request(lambda _, part=part: self._v2.get_task_batch(part)["results"])  # type: ignore[misc]
            except EndpointProblem:  # one unknown task must not hide the others
                records = {task_id: self._look_up_one(task_id) for task_id in part}
            found.update({task_id: record for task_id, record in records.items() if isinstance(record, dict)})
        return found

    def _look_up_one(self, task_id: str) -> dict[str, Any] | None:
        try:
            return dict(self.request(lambda _: self._v2.get_task(task_id)).data)
        except EndpointProblem:
            return None

    def status(self, endpoint: str) -> str:
        """Return the status of an endpoint: ``online``, ``offline`` or another value of the service."""
        return str(self.request(lambda _: self._v2.get_endpoint_status(endpoint))["status"])


def _sdk_version() -> str:
    from globus_compute_sdk import __version__

    return str(__version__)


def classified(error: Exception) -> Exception:
    """Convert the error of a failed request to the exception that says how to proceed.

    Returns:
        Unreachable: try again later. EndpointNotReady: the same for this call. FunctionUnknown: register again.
        EndpointProblem: the endpoint refuses. UserMistake: a login is needed, or the request is too large. Any other
        error unchanged.
    """
    import globus_sdk
    import requests
    from globus_sdk.token_storage import TokenValidationError

    if isinstance(error, TokenValidationError):
        return UserMistake(f"Globus: not logged in: {error}", remedy=f"Run: {LOGIN}")
    if isinstance(error, globus_sdk.NetworkError | requests.RequestException | OSError):
        return Unreachable(error_text(error))
    if not isinstance(error, globus_sdk.GlobusAPIError):
        return error
    status, text = error.http_status, one_line(error.message or error.text or error.code or "")
    if status in TRANSIENT or status >= 500:
        return Unreachable(f"{status}: {text}")
    if status == 401 or isinstance(error, globus_sdk.AuthAPIError):
        return UserMistake(f"Globus does not accept this login: {text}", remedy=f"Run: {LOGIN}")
    if status == 404 and "FUNCTION" in (error.code or "").upper():
        return FunctionUnknown(text)
    if is_restarting(text):
        return EndpointNotReady(text)
    if status == 413:
        return UserMistake(f"Globus Compute refuses the request as too large: {text}")
    remedies = {
        403: f"Ask the endpoint's owner for access, or run: {LOGIN}",
        404: "Check the endpoint's id; to resume with another one: --set sites.NAME.endpoint=ID",
        422: "Compare the site's settings with what the endpoint's template takes, or run setup_site.py again",
    }
    return EndpointProblem(f"the endpoint refuses the call ({status}): {text}", remedy=remedies.get(status))

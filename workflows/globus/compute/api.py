"""The calls to Globus Compute's web service that a campaign makes, and what their failures mean.

Uses the addresses and the login of a ``globus_compute_sdk.Client``, but neither its executor, which ends for good after
one refusal, nor its reading of results, which would unpickle them.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError, EndpointProblem, UserMistake
from workflows.globus.compute.messages import RESULT_SERIALIZERS, bootstrap_source, is_restarting, one_line
from workflows.globus.transfer.calls import error_text

if TYPE_CHECKING:
    from globus_compute_sdk import Client

logger = logging.getLogger(__name__)
TRANSIENT = (408, 409, 423, 425, 429)  # and all from 500 on
BATCH = 100  # task ids asked for at once
REQUESTS, PERIOD_S = 10, 10.0  # half of what the service allows: a person may look on with the same login
LOGIN = "python workflows/login.py"


class Unreachable(Exception):  # noqa: N818
    """The service cannot be reached, or asks for patience; to be tried again later."""


class EndpointNotReady(Exception):  # noqa: N818
    """The endpoint will take the call in a while."""


class FunctionUnknown(Exception):  # noqa: N818
    """The service does not know the function any more."""


class RateLimiter:
    """Lets so many requests pass in so many seconds; the next one waits."""

    def __init__(
        self,
        requests: int = REQUESTS,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.requests, self.period_s, self.clock, self.sleep = requests, period_s, clock, sleep
        self.passed: list[float] = []

    def __call__(self) -> None:
        now = self.clock()
        self.passed = [moment for moment in self.passed if now - moment < self.period_s]
        if len(self.passed) >= self.requests:
            self.sleep(self.passed[0] + self.period_s - now)
        self.passed.append(self.clock())


class ComputeApi:
    """The service, for one thread.

    Args:
        make_client: gives the logged-in client; called at the first request.
    """

    def __init__(self, make_client: Callable[[], Client], pace: RateLimiter | None = None) -> None:
        self.make_client, self.pace = make_client, pace or RateLimiter()
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
            # nothing but a token that has run out: a submission that is sent again by itself makes a second task
            self._v3.retry_config = RetryConfig(max_retries=1)
            self._v3.retry_config.checks.register_check(check_expired_authorization)
            self._client = client
        return self._client

    def ask(self, call: Callable[[Client], Any]) -> Any:
        """One paced request.

        Raises:
            Unreachable, NotYet, Forgotten, CrossfedError: see ``classified``.
        """
        self.pace()
        try:
            return call(self._open())
        except CrossfedError:
            raise
        except Exception as error:
            raise classified(error) from error

    def register(self) -> str:
        """The id of the shipped function."""
        data = {
            "function_name": "call_site",
            "function_code": bootstrap_source(),
            "serialized": False,
            "meta": {"python_version": platform.python_version(), "sdk_version": _sdk_version()},
        }
        return str(self.ask(lambda _: self._v3.register_function(data))["function_uuid"])

    def pack(self, function_id: str, arguments: tuple[str, str], config: Mapping[str, Any]) -> Any:
        """A batch of one call."""
        self._open()
        assert self._client
        batch = self._client.create_batch(
            user_endpoint_config=dict(config) or None, result_serializers=RESULT_SERIALIZERS
        )
        batch.add(function_id, arguments)
        return batch

    def submit(self, endpoint: str, function_id: str, arguments: tuple[str, str], config: Mapping[str, Any]) -> str:
        """The id of the task that the service has made of a call."""
        data = self.ask(lambda _: self._v3.submit(endpoint, self.pack(function_id, arguments, config).prepare()))
        return str(next(iter(data["tasks"].values()))[0])

    def look_up(self, task_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What the service knows of tasks; one it does not know is missing."""
        wanted, found = sorted(task_ids), {}
        for first in range(0, len(wanted), BATCH):
            some = wanted[first : first + BATCH]
            try:
                answer = self.ask(lambda _, some=some: self._v2.get_task_batch(some)["results"])  # type: ignore[misc]
            except EndpointProblem:  # one that is unknown must not hide the others
                answer = {task_id: self._look_up_one(task_id) for task_id in some}
            found.update({task_id: record for task_id, record in answer.items() if isinstance(record, dict)})
        return found

    def _look_up_one(self, task_id: str) -> dict[str, Any] | None:
        try:
            return dict(self.ask(lambda _: self._v2.get_task(task_id)).data)
        except EndpointProblem:
            return None

    def status(self, endpoint: str) -> str:
        """``online``, ``offline``, or what else the service says of an endpoint."""
        return str(self.ask(lambda _: self._v2.get_endpoint_status(endpoint))["status"])


def _sdk_version() -> str:
    from globus_compute_sdk import __version__

    return str(__version__)


def classified(error: Exception) -> Exception:
    """What a failed request means.

    Returns:
        Unreachable: try again later. NotYet: the same for this call. Forgotten: register again. EndpointProblem: the
        endpoint refuses. UserMistake: a login is needed, or the request is too large. Any other error as it is.
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
    status, words = error.http_status, one_line(error.message or error.text or error.code or "")
    if status in TRANSIENT or status >= 500:
        return Unreachable(f"{status}: {words}")
    if status == 401 or isinstance(error, globus_sdk.AuthAPIError):
        return UserMistake(f"Globus does not accept this login: {words}", remedy=f"Run: {LOGIN}")
    if status == 404 and "FUNCTION" in (error.code or "").upper():
        return FunctionUnknown(words)
    if is_restarting(words):
        return EndpointNotReady(words)
    if status == 413:
        return UserMistake(f"Globus Compute finds the request too large: {words}")
    remedies = {
        403: "Ask the endpoint's owner to admit you, or run: " + LOGIN,
        404: "Check the endpoint's id; a resume takes another: --set sites.NAME.endpoint=ID",
        422: "Check the site's settings against what the endpoint's template asks for, or run setup_site.py again",
    }
    return EndpointProblem(f"the endpoint refuses the call ({status}): {words}", remedy=remedies.get(status))

"""The requests to the web service of Globus Compute that a campaign makes.

Uses the addresses and the login of a ``globus_compute_sdk.Client``, but neither its executor, which stops for good
after one refusal, nor its reading of results, which would unpickle them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError, EndpointProblem
from workflows.globus.compute.failures import FunctionUnknown, Unreachable, classified
from workflows.globus.compute.messages import RESULT_SERIALIZERS
from workflows.globus.compute.rate_limit import RateLimiter
from workflows.globus.compute.registered import (
    bootstrap_source,
    forget_function,
    identity_of,
    known_function,
    remember_function,
)

if TYPE_CHECKING:
    from globus_compute_sdk import Client

BATCH = 100  # task ids in one status request


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
            Unreachable, EndpointNotReady, FunctionUnknown, CrossfedError: see ``failures.classified``.
        """
        if not self.limiter():
            raise Unreachable("the driver stops")
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
        known = chosen or known_function(account) or used_before or self._register()
        remember_function(account, known)
        return known

    def register_for(self, endpoint: str) -> str:
        """Register the bootstrap function for one endpoint of high assurance, which runs no other; return its id."""
        return self._register(ha_endpoint_id=endpoint)

    def _register(self, **more: str) -> str:
        data = {
            "function_name": "call_site",
            "function_code": bootstrap_source(),
            "serialized": False,
            "meta": {"python_version": platform.python_version(), "sdk_version": _sdk_version()},
            **more,
        }
        return str(self.request(lambda _: self._v3.register_function(data)["function_uuid"]))

    def _account(self) -> str:
        """Return the service's address and the identity that asks it: a function belongs to both."""
        client = self._open()
        return f"{client.web_service_address} {identity_of(client.app)}"

    def pack(self, function_id: str, requests: Sequence[str], config: Mapping[str, Any]) -> Any:
        """Return a batch of calls of one function."""
        assert self._client
        batch = self._client.create_batch(
            user_endpoint_config=dict(config) or None, result_serializers=RESULT_SERIALIZERS
        )
        batch.user_runtime = same_runtime()
        for request in requests:
            batch.add(function_id, (request,))
        return batch

    def submit(self, endpoint: str, function_id: str, requests: Sequence[str], config: Mapping[str, Any]) -> list[str]:
        """Submit calls to an endpoint in one request and return the ids of their tasks, in the same order."""

        def send(_: Client) -> list[str]:
            answer = self._v3.submit(endpoint, self.pack(function_id, requests, config).prepare())
            (task_ids,) = answer["tasks"].values()
            if len(task_ids) != len(requests):
                raise ValueError("the service has not taken all calls")
            return [str(task_id) for task_id in task_ids]

        try:
            submitted: list[str] = self.request(send)
        except FunctionUnknown:
            forget_function(self._account())
            raise
        return submitted

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
        return str(self.request(lambda _: self._v2.get_endpoint_status(endpoint)["status"]))

    def is_high_assurance(self, endpoint: str) -> bool:
        """Return True if an endpoint only runs functions that are registered for it."""
        return bool(self.request(lambda _: self._v2.get_endpoint(endpoint).data.get("high_assurance")))


def same_runtime() -> Any:
    """Return the description of the submitter's Python that goes with each batch: the same on every machine.

    It is a part of what identifies a child endpoint. With the truth, a driver that resumes on another machine would
    start a second child there, and a second block.
    """
    from globus_compute_sdk.sdk.batch import UserRuntime

    return UserRuntime(
        globus_compute_sdk_version="4.19.0",
        globus_sdk_version="4.9.1",
        python_version="3.11.7",
        python=UserRuntime.PythonInfo("3.11.7", "3.11.7", (3, 11, 7), (3, 11, 7, "final", 0), "CPython", "any"),
        platform=UserRuntime.PlatformInfo(("64bit", "ELF"), "any", "crossfed", "any", "any", "any"),
    )


def _sdk_version() -> str:
    from globus_compute_sdk import __version__

    return str(__version__)

"""Globus Auth and Transfer on a loopback port, with real clients of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from facilities.globus.auth import Auth
from facilities.globus.http import HttpService
from facilities.globus.transfer import Transfer


class TransferFacility:
    """Auth and Transfer on one service, with clients of a service account.

    Attributes:
        service: HTTP service with faults, the record of calls, stop and start.
        auth, transfer: services on it.
        account: service account.
    """

    def __init__(self) -> None:
        self.service = HttpService()
        self.auth = Auth(self.service)
        self.transfer = Transfer(self.service, self.auth)
        self.account = self.auth.add_service_account()

    def app(self, secret: str = "") -> Any:
        """Return a plain ``globus_sdk.ClientApp`` of the account; its tokens are in memory."""
        from globus_sdk import ClientApp, GlobusAppConfig

        config = GlobusAppConfig(token_storage="memory")
        known = {"client_id": self.account.client_id, "client_secret": secret or self.account.secret}
        return ClientApp("tests", **known, config=config)

    def client(self, app: Any = None) -> Any:
        """Return a plain ``globus_sdk.TransferClient``, without consents for single collections."""
        from globus_sdk import TransferClient

        return TransferClient(app=app or self.app())

    def tokens(self) -> list[str]:
        """Return all access tokens that were ever issued."""
        return list(self.auth._tokens)


@pytest.fixture
def transfer_facility(monkeypatch: pytest.MonkeyPatch) -> Iterator[TransferFacility]:
    """Yield a new service per test; clients made in this process use it."""
    with (facility := TransferFacility()).service:
        for name in ("AUTH", "TRANSFER"):
            monkeypatch.setenv(f"GLOBUS_SDK_SERVICE_URL_{name}", f"{facility.service.url}/")
        monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_ID", facility.account.client_id)
        monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", facility.account.secret)
        yield facility

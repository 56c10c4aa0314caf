"""The registered function that endpoints run, and the own ones of endpoints of high assurance."""

from __future__ import annotations

from functools import partial

from apps.base.errors import CrossfedError
from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.call_log import CallLog
from workflows.globus.compute.failures import Unreachable
from workflows.globus.remedies import LOGIN, LoginNeeded


class RegisteredFunctions:
    """Ids of the bootstrap function at the service.

    Args:
        api: registers it.
        log: in the journal.
    """

    def __init__(self, api: ComputeApi, log: CallLog) -> None:
        self.api, self.log = api, log
        self.shared: str | None = None
        self.own: dict[str, str | None] = {}  # endpoint of high assurance -> id; None: not registered yet
        self.plain: set[str] = set()  # endpoints that were asked and need no own one

    def find(self, endpoint: str) -> tuple[str, bool]:
        """Return the id of the function for an endpoint, and True if it was registered just now."""
        known = self.own.get(endpoint, self.shared)
        if known is not None:
            return known, False
        if endpoint in self.own:
            made = self.own[endpoint] = self.api.register_for(endpoint)
            return made, True
        self.shared = self.api.register(self.log.function_id())
        self.log.registered(self.shared)
        return self.shared, True

    def forget(self, endpoint: str) -> None:
        """Have the function of an endpoint registered again: the service does not know it any more."""
        if endpoint in self.own:
            self.own[endpoint] = None
        else:
            self.shared = None
            self.log.forgotten()

    def needs_own(self, endpoint: str) -> bool:
        """Return True if a refused call may pass with a function of the endpoint's own; asked once."""
        if endpoint in self.own or endpoint in self.plain:
            return False
        try:
            high_assurance = self.api.is_high_assurance(endpoint)
        except CrossfedError:
            high_assurance = False  # the first refusal counts
        if high_assurance:
            self.own[endpoint] = None
        else:
            self.plain.add(endpoint)
        return high_assurance


def login_function(chosen: str | None) -> str:
    """Return the id of the function of this machine's login, which is registered if it never was.

    Args:
        chosen: id to be used from now on instead; returned as it is where there is no login.

    Raises:
        CrossfedError: there is no login, or the service cannot be reached.
    """
    from workflows.globus.identity import compute_client, globus_app, has_login

    if not has_login():
        if chosen:
            return chosen
        raise LoginNeeded("Globus: not logged in on this machine", remedy=f"Log in: {LOGIN}")
    try:
        return ComputeApi(partial(compute_client, globus_app())).register(chosen=chosen)
    except Unreachable as error:
        if chosen:
            return chosen
        raise CrossfedError(f"Globus Compute cannot be reached: {error}") from None

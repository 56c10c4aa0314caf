"""The registered function that endpoints run, and the own ones of endpoints of high assurance."""

from __future__ import annotations

from apps.base.errors import CrossfedError
from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.call_log import CallLog


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

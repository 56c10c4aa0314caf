"""Scopes by resource server, and the consents that identities have given to clients."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from globus_sdk.scopes import Scope, ScopeParser

COMPUTE_SERVER = "funcx_service"
COMPUTE_SCOPE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"


def by_resource_server(scopes: str) -> dict[str, str]:
    """Return the resource servers of a request's scopes, each with its scopes separated by spaces."""
    found: dict[str, list[str]] = {}
    for scope in ScopeParser.parse(scopes):
        found.setdefault(resource_server(scope.scope_string), []).append(scope.scope_string)
    return {server: " ".join(names) for server, names in found.items()}


def resource_server(scope: str) -> str:
    """Return the service of a scope; each collection is a service named by its id."""
    if scope == COMPUTE_SCOPE:
        return COMPUTE_SERVER
    if scope.startswith("urn:"):
        return scope.split(":")[4]
    return scope.split("/")[-2] if "/" in scope else "auth.globus.org"


def paths(scope: Scope, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path to a scope and to each scope that depends on it."""
    path = (*above, scope.scope_string)
    yield path
    for dependency in scope.dependencies:
        yield from paths(dependency, path)


class Consents:
    """Consents of each identity, by client."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], dict[tuple[str, ...], int]] = {}
        self._ids = itertools.count(1)

    def give(self, subject: str, client_id: str, scopes: str) -> None:
        known = self._given.setdefault((subject, client_id), {})
        for scope in ScopeParser.parse(scopes):
            for path in paths(scope):
                known.setdefault(path, next(self._ids))

    def withdraw(self, subject: str) -> None:
        """Remove all consents of an identity."""
        for owner in [owner for owner in self._given if owner[0] == subject]:
            del self._given[owner]

    def has_data_access(self, subject: str, client_id: str, collection_id: str) -> bool:
        """Return True if Transfer may read and write a mapped collection for an identity."""
        known = self._given.get((subject, client_id), {})
        return any(path[-1].endswith(f"/{collection_id}/data_access") and len(path) > 1 for path in known)

    def rows(self, subject: str, client_id: str) -> list[dict[str, Any]]:
        """Return the consents in the form of ``GET /v2/api/identities/ID/consents``."""
        known = self._given.get((subject, client_id), {})
        now = datetime.fromtimestamp(time.time(), UTC).isoformat()
        fixed = {"client": client_id, "effective_identity": subject, "status": "approved", "allows_refresh": True}
        fixed |= {"auto_approved": False, "atomically_revocable": False}
        fixed |= {"created": now, "updated": now, "last_used": now}
        return [self._row(known, path) | fixed for path in known]

    @staticmethod
    def _row(known: dict[tuple[str, ...], int], path: tuple[str, ...]) -> dict[str, Any]:
        way = [known[path[: length + 1]] for length in range(len(path))]
        return {"id": known[path], "scope": path[-1], "scope_name": path[-1], "dependency_path": way}

"""The function that endpoints run: its text, and the id under which an account has registered it.

Operators let their endpoints accept one function, by its id. It is therefore registered once for each text and account,
and its text changes with a release only, which ``RELEASES`` records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.base.files import write_json
from apps.models.sources import cache_folder, locked
from data.foreign import read_json

LARGEST = 1 << 20  # bytes of the file of known ids
RELEASES = {  # SHA-256 of the text -> first release with it
    "0d2733e6d61320aed40c07642b7fa5b64a89f75f9cd6b93383b24acb10ec7e06": "0.1",
}


def bootstrap_source() -> str:
    """Return the source text of the function that runs in a site's worker."""
    return (Path(__file__).parent / "bootstrap.py").read_text()


def bootstrap_digest() -> str:
    """Return the first digits of the SHA-256 of the text."""
    return hashlib.sha256(bootstrap_source().encode()).hexdigest()[:16]


def identity_of(app: Any) -> str:
    """Return the identity of a login: that of a person, or the id of a service account."""
    person = getattr(getattr(app, "token_storage", None), "identity_id", None)
    return str(person or getattr(app, "client_id", None) or "unknown")


def known_function(account: str) -> str | None:
    """Return the id of the function; None: the account has not registered this text, as far as is known here.

    Args:
        account: address of the service and identity.
    """
    found = _read().get(account, {})
    return found.get(bootstrap_digest()) if isinstance(found, dict) else None


def remember_function(account: str, function_id: str) -> None:
    """Keep the id of the function for the next driver."""
    if known_function(account) != function_id:
        _change(lambda known: known.setdefault(account, {}).update({bootstrap_digest(): function_id}))


def forget_function(account: str) -> None:
    """Drop the id: the service does not know it any more."""
    _change(lambda known: known.get(account, {}).pop(bootstrap_digest(), None))


def _cache() -> Path:
    return cache_folder() / "functions.json"


def _read() -> dict[str, Any]:
    try:
        found = read_json(_cache(), LARGEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _change(change: Callable[[dict[str, Any]], object]) -> None:
    path = _cache()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):  # two drivers may start at the same time
        known = _read()
        change(known)
        write_json(path, known)

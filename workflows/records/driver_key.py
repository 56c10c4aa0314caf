"""The driver's key: one for each user, in the user's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.trust.keys import private_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def driver_key_path() -> Path:
    """Return the path of the user's key, ``~/.crossfed/driver.key``."""
    return Path("~/.crossfed/driver.key").expanduser()


def driver_key() -> Ed25519PrivateKey:
    """Return the user's key, which is made at its first use.

    Raises:
        StorageError: it cannot be written, or others can read it.
    """
    return private_key(driver_key_path())

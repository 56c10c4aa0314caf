"""Ed25519 keys in files that only their owner can read; a private key never leaves the machine it was made on."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import StorageError
from apps.base.files import cannot_read, cannot_write
from data.files import UNFINISHED, sync_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SECRET_BYTES = 32
ID_DIGITS = 16
FOLDER_MODE, FILE_MODE = 0o700, 0o600


def private_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a file of 32 bytes; it is made if there is no file, and never overwritten.

    Raises:
        StorageError: it cannot be written or read, is no key, or others can read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_secret(path))


def _secret(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise StorageError(cannot_read(path, error).what, file=str(path)) from error
    if len(content) != SECRET_BYTES:
        raise StorageError(
            f"no key: {len(content)} bytes instead of {SECRET_BYTES}", file=str(path), remedy="Restore it from a copy"
        )
    if mode & 0o077:
        raise StorageError(
            f"others can read this key (mode {mode:04o})", file=str(path), remedy=f"Run: chmod 600 {path}"
        )
    return content


def _make(path: Path) -> None:
    """Write a new key; the file appears whole, and one that another process has made meanwhile is kept."""
    draft = path.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        _appear(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _appear(draft: Path, path: Path) -> None:
    """Give a whole file its name; unlike a rename a link replaces nothing."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            draft.rename(path)


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the public key in 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """Return the short name of a public key, 16 hexadecimal digits of its SHA-256, for people and policies."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:ID_DIGITS]

"""Signed statements: Ed25519 over ``domain NUL canonical JSON``.

The domain names the kind of the statement, so that one kind never passes for another. A statement is kept as the very
text that was signed; who verifies it checks that text and then reads the same text, and never writes it anew.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, TypedDict

from apps.trust.canonical import canonical, read_canonical
from apps.trust.keys import public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORDER, MANIFEST, ENROLMENT = "crossfed/order/v1", "crossfed/manifest/v1", "crossfed/enrolment/v1"


class Signed(TypedDict):
    """A statement with its signature; ``key`` and ``signature`` in hexadecimal digits."""

    statement: str
    key: str
    signature: str


class SignatureError(ValueError):
    """A statement that was not signed so with this key."""


def sign(domain: str, statement: Any, key: Ed25519PrivateKey) -> Signed:
    """Sign a statement.

    Args:
        domain: kind of the statement.
        statement: plain values without floats.
        key: of who says it.

    Raises:
        ValueError: the statement has no canonical form.
    """
    text = canonical(statement)
    return Signed(statement=text.decode(), key=public_key(key), signature=key.sign(_message(domain, text)).hex())


def read_signed(domain: str, signed: Signed, key: str | None = None) -> Any:
    """Verify a signature and return the statement.

    Args:
        domain: kind of the statement.
        signed: as received.
        key: public key that must have signed; None: the one that is named.

    Raises:
        SignatureError: another key, a wrong signature, or not the canonical text of a statement.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not (isinstance(signed, dict) and signed.keys() == Signed.__annotations__.keys()):
        raise SignatureError("a signature has statement, key and signature")
    if not all(isinstance(text, str) for text in signed.values()):
        raise SignatureError("a signature has statement, key and signature as text")
    if key is not None and not hmac.compare_digest(signed["key"].encode(), key.encode()):
        raise SignatureError("signed with another key")
    try:
        text = signed["statement"].encode()
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(_lower(signed["key"], 64)))
        public.verify(bytes.fromhex(_lower(signed["signature"], 128)), _message(domain, text))
        return read_canonical(text)
    except InvalidSignature:
        raise SignatureError("the signature does not fit") from None
    except ValueError as error:
        raise SignatureError(str(error)) from None


def statement_hash(signed: Signed) -> str:
    """Return the SHA-256 of a statement, by which others name it."""
    return hashlib.sha256(signed["statement"].encode()).hexdigest()


def _message(domain: str, text: bytes) -> bytes:
    return domain.encode() + b"\0" + text


def _lower(digits: str, length: int) -> str:
    """Return hexadecimal digits; other spellings of the same bytes are refused."""
    if len(digits) != length or digits.strip("0123456789abcdef"):
        raise ValueError(f"not {length} hexadecimal digits")
    return digits

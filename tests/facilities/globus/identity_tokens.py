"""OpenID Connect identity tokens, signed with a key that is made for the first token."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ALGORITHM = "RS512"


class IdentityTokens:
    """Signer of identity tokens, which publishes the key to check them."""

    @functools.cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65_537, key_size=2048)

    def signed(self, claims: dict[str, Any], lifetime_s: float) -> str:
        now = int(time.time())
        return jwt.encode(claims | {"iat": now, "exp": now + int(lifetime_s)}, self._key, algorithm=ALGORITHM)

    def public_keys(self) -> dict[str, Any]:
        """Return the JSON Web Key Set with the one public key."""
        key = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [key | {"alg": ALGORITHM, "use": "sig"}]}

"""Hash chain over records: each link covers its record and all before it, so a change in the middle is seen.

``h_0 = SHA256(domain NUL header)``, ``h_n = SHA256(h_{n-1} record)``. A tail that was cut off is not seen from the
chain alone: it is seen by whoever holds a later link.
"""

from __future__ import annotations

import hashlib


def first_link(domain: str, header: bytes) -> str:
    """Return the link before the first record, in hexadecimal digits."""
    return hashlib.sha256(domain.encode() + b"\0" + header).hexdigest()


def next_link(before: str, record: bytes) -> str:
    """Return the link of a record.

    Args:
        before: link of the record before.
        record: its bytes.
    """
    return hashlib.sha256(bytes.fromhex(before) + record).hexdigest()

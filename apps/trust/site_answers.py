"""Answers of a site, signed by the site: its enrolment and its manifests.

The signed statement has all values of the answer, its floats as text, except its losses and how it was fetched, and
with them the order that it answers, and the journal's head that the order named.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.trust.canonical import is_same, plain_text
from apps.trust.keys import private_key
from apps.trust.orders import OrderFacts
from apps.trust.signed import SignatureError, Signed, read_signed, sign

FOLDER, KEY = "keys", "site.key"
# the root may be moved, an answer repeated, and a policy may withhold losses that an earlier one has told
UNSIGNED = ("signed", "store", "reused", "loss_first", "loss_last")
FIELDS = {"values", "campaign", "order", "head"}


def site_key_path(root: Path) -> Path:
    """Return the path of a site's private key.

    Args:
        root: the site's own storage for a campaign, ``STORAGE_ROOT/RUN/SITE``. A key that was made in ``STORAGE_ROOT``
            by hand serves all campaigns; else each campaign has one.
    """
    made_by_hand = root.parent.parent / FOLDER / KEY
    return made_by_hand if made_by_hand.exists() else root / FOLDER / KEY


def sign_answer(domain: str, values: Mapping[str, Any], root: Path, order: OrderFacts) -> Signed:
    """Sign an answer with the site's key, which is made if there is none.

    Args:
        domain: kind of the answer.
        values: of the answer.
        root: the site's own storage.
        order: that it answers.

    Raises:
        StorageError: the key cannot be read or written.
    """
    said = plain_text({name: value for name, value in values.items() if name not in UNSIGNED})
    return sign(domain, {"values": said, **order}, private_key(site_key_path(root)))


def said_of(domain: str, answer: Mapping[str, Any], key: str | None, campaign: str) -> dict[str, Any]:
    """Return the signed statement of an answer after verifying it.

    Args:
        domain: kind of the answer.
        answer: its values, and ``signed``.
        key: public key of the site; None: the one that is named.
        campaign: id of the campaign.

    Raises:
        SignatureError: not signed, by another key, for another campaign, or its values are not those that were signed.
    """
    signed = answer.get("signed")
    if signed is None:
        raise SignatureError("not signed")
    statement = read_signed(domain, signed, key)
    if not isinstance(statement, dict) or statement.keys() != FIELDS or not isinstance(statement["values"], dict):
        raise SignatureError("signed with other fields")
    if not hmac.compare_digest(str(statement["campaign"]).encode(), campaign.encode()):
        raise SignatureError("signed for another campaign")
    values = {name: value for name, value in answer.items() if name not in UNSIGNED}
    for name in sorted(values.keys() | statement["values"].keys()):
        if (
            name not in values
            or name not in statement["values"]
            or not is_same(statement["values"][name], values[name])
        ):
            raise SignatureError(f"its {name} is not the signed one")
    return statement

"""Orders: what a driver asks of a site, signed by the driver.

The site's own process verifies an order before anything is read or run, so that whoever may hand a request to a site,
by an endpoint or a stolen login, cannot ask in the name of a driver without the driver's key. An order that arrives
twice asks for the same task, which is answered from what was done.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from apps.base.errors import OrderRefused
from apps.trust.canonical import canonical, plain_text
from apps.trust.keys import key_id
from apps.trust.signed import ORDER, SignatureError, Signed, read_signed, sign, statement_hash

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VALID_S = 30 * 24 * 3600  # longer than a queue, and than a driver may be away
FIELDS = {
    **dict.fromkeys(("campaign", "name", "function", "site", "task", "base", "settings", "arguments", "head"), str),
    **dict.fromkeys(("round", "attempt", "not_after"), int),
}


class OrderFacts(TypedDict):
    """Fields of an order that the site copies into its signed answer."""

    campaign: str  # id of the campaign
    order: str  # SHA-256 of the order
    head: str  # of the driver's journal when the order was made


NO_ORDER = OrderFacts(campaign="", order="", head="")


@dataclass(frozen=True)
class Order:
    """A verified order.

    Attributes:
        key: id of the key that has signed it.
        facts: what the site repeats of it.
        statement: all of it.
    """

    key: str
    facts: OrderFacts
    statement: Mapping[str, Any]


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value; the same before and after its way as JSON."""
    return hashlib.sha256(canonical(plain_text(value))).hexdigest()


def sign_order(
    key: Ed25519PrivateKey, call: Mapping[str, Any], *, campaign: str, task: str, head: str, now_s: float
) -> Signed:
    """Sign a request.

    Args:
        key: of the driver.
        call: as it is sent: ``function``, ``args``, ``kwargs``, ``campaign`` with its name, and ``metrics``.
        campaign: its id.
        task: identity of the training that is asked for; empty for other requests.
        head: of the journal.
        now_s: UNIX time.
    """
    place, work, request, base = _parts(call["args"])
    statement = {
        "campaign": campaign,
        "name": call.get("campaign", ""),
        "function": call["function"],
        "site": str(place.get("site", "")),
        "round": int(place.get("round", 0)),
        "attempt": int(request.get("attempt", 0)),
        "task": task,
        "base": str((base.get("artifact") or {}).get("sha256", "")),
        "settings": digest(work),
        "arguments": _arguments(call),
        "not_after": int(now_s) + VALID_S,
        "head": head,
    }
    return sign(ORDER, statement, key)


def _parts(args: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return place, settings, request and base model of a request, each empty where it has none."""
    padded = [*args, *[None] * 4][:4]
    return [part if isinstance(part, Mapping) else {} for part in padded]


def _arguments(call: Mapping[str, Any]) -> str:
    return digest([call["args"], call.get("kwargs") or {}, call.get("metrics")])


def read_order(call: Mapping[str, Any], now_s: float) -> Order | None:
    """Verify the order of a request; None: it has none.

    Args:
        call: as received; ``order`` in it is the signed order.
        now_s: UNIX time at the site.

    Raises:
        OrderRefused: a wrong signature, another request than the signed one, or too old.
    """
    signed = call.get("order")
    if signed is None:
        return None
    try:
        statement = read_signed(ORDER, signed)
        _require_fields(statement)
        place = _parts(call["args"])[0]
        asked = {"function": call["function"], "arguments": _arguments(call)}
        asked |= {
            "name": call.get("campaign", ""),
            "site": str(place.get("site", "")),
            "round": int(place.get("round", 0)),
        }
    except SignatureError as error:
        raise OrderRefused(f"the order of this request is not valid: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OrderRefused(f"the order of this request cannot be read: {type(error).__name__}") from None
    for name, value in asked.items():
        if not hmac.compare_digest(str(statement[name]).encode(), str(value).encode()):
            raise OrderRefused(f"the order of this request was signed for another one: {name} differs")
    if now_s > statement["not_after"]:
        raise OrderRefused("the order of this request is too old", remedy="Resume the campaign: it orders anew")
    facts = OrderFacts(campaign=statement["campaign"], order=statement_hash(signed), head=statement["head"])
    return Order(key_id(signed["key"]), facts, statement)


def _require_fields(statement: Any) -> None:
    if not isinstance(statement, dict) or statement.keys() != FIELDS.keys():
        raise SignatureError("it has other fields than an order")
    for name, kind in FIELDS.items():
        if type(statement[name]) is not kind:
            raise SignatureError(f"its field {name} is no {kind.__name__}")

"""The orders of a driver at a site: they hold for the very request that was signed, and the policy names the driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from site_policy import write_policy

from apps.base.error_records import error_from
from apps.base.errors import OrderRefused, PolicyRefused
from apps.remote.admission import POLICY_VARIABLE
from apps.remote.calls import FUNCTIONS, answer_text
from apps.trust.keys import key_id, public_key
from apps.trust.orders import VALID_S, read_order, sign_order
from apps.trust.signed import MANIFEST, sign

KEY, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (7, 8))
LOOK, NOW_S = "apps.site:site_status", 1.8e9
Change = Callable[[dict[str, Any]], Any]


def ordered(root: str = "/site", now_s: float = NOW_S, key: Ed25519PrivateKey = KEY, **changes: Any) -> dict[str, Any]:
    """Return a request with its order, as it arrives at the site."""
    call = {"function": LOOK, "args": [{"site": "aurora", "round": 3}, root], "kwargs": {}, "campaign": "demo"}
    call |= changes
    signed = sign_order(key, call, campaign="c" * 32, task="", head="d" * 64, now_s=now_s)
    found: dict[str, Any] = json.loads(json.dumps({**call, "order": signed}))
    return found


def test_the_site_reads_what_the_driver_has_signed() -> None:
    order = read_order(ordered(), NOW_S)
    assert order is not None and order.key == key_id(public_key(KEY))
    assert (order.statement["site"], order.statement["round"], order.statement["name"]) == ("aurora", 3, "demo")
    assert (order.facts["campaign"], order.facts["head"]) == ("c" * 32, "d" * 64)
    assert read_order({**ordered(), "order": None}, NOW_S) is None, "who may ask without an order is for the policy"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda call: call["args"][0].update(round=4), "arguments differs"),
        (lambda call: call["args"][0].update(site="frontier"), "arguments differs"),
        (lambda call: call["args"].__setitem__(1, "/elsewhere"), "arguments differs"),
        (lambda call: call.update(kwargs={"more": 1}), "arguments differs"),
        (lambda call: call.update(metrics=["losses"]), "arguments differs"),
        (lambda call: call.update(campaign="other"), "name differs"),
        (lambda call: call.update(function="apps.train:enrol"), "function differs"),
        (lambda call: call.update(args=None), "cannot be read"),
        (lambda call: call.update(order=[]), "not valid"),
        (lambda call: call.update(order="x"), "not valid"),
        (lambda call: call["order"].update(signature="0" * 128), "the signature does not fit"),
        (lambda call: call["order"].update(key=public_key(STRANGER)), "the signature does not fit"),
        (lambda call: call.update(order=sign(MANIFEST, json.loads(call["order"]["statement"]), KEY)), "does not fit"),
        (lambda call: call.update(order=sign("crossfed/order/v1", {"round": 3}, KEY)), "other fields"),
        (lambda call: call.update(order=ordered(args=[{"site": "aurora", "round": 2}, "/site"])["order"]), "arguments"),
        (lambda call: call.update(order=ordered(campaign="earlier")["order"]), "name differs"),
    ],
)
def test_an_order_holds_for_its_own_request_alone(change: Change, problem: str) -> None:
    call = ordered()
    change(call)
    with pytest.raises(OrderRefused, match=problem):
        read_order(call, NOW_S)


def test_an_old_order_is_refused() -> None:
    assert read_order(ordered(), NOW_S + VALID_S - 1)
    with pytest.raises(OrderRefused, match="too old.*Resume the campaign"):
        read_order(ordered(), NOW_S + VALID_S + 1)


@pytest.mark.parametrize("behind_endpoint", [True, False])
def test_the_policy_accepts_the_orders_of_its_drivers_only(
    behind_endpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all routes; and its rule ``campaigns`` is about the name that the driver has signed."""
    import time

    policy = write_policy(tmp_path / "p", tmp_path, drivers=[key_id(public_key(KEY))], campaigns=["demo"])
    monkeypatch.setenv(POLICY_VARIABLE, str(policy))
    monkeypatch.setattr("apps.remote.admission.account_policy", lambda: policy)
    root = str(tmp_path / "site")

    def ask(call: dict[str, Any]) -> Any:
        answer = json.loads(answer_text(json.dumps(call), FUNCTIONS if behind_endpoint else None))
        if "error" in answer:
            raise error_from(answer["error"])
        return answer["result"]

    assert ask(ordered(root, time.time()))["progress"] is None
    for call, problem in (
        (ordered(root, time.time(), STRANGER), f"rule drivers: asked {key_id(public_key(STRANGER))}"),
        ({**ordered(root, time.time()), "order": None}, "rule drivers: asked an unsigned request"),
        (ordered(root, time.time(), campaign="other"), "rule campaigns: asked other"),
    ):
        with pytest.raises(PolicyRefused, match=problem):
            ask(call)
    with pytest.raises(OrderRefused, match="name differs"):
        ask({**ordered(root, time.time(), campaign="other"), "campaign": "demo"})
    log = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [entry["answer"] for entry in log][-2:] == ["refused by campaigns", "OrderRefused"]
    assert log[0]["driver"] == key_id(public_key(KEY))

"""Canonical JSON, keys, signatures and chains: the published vectors, round trips, and changes of single bytes."""

from __future__ import annotations

import hashlib
import json
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import StorageError
from apps.trust.canonical import LARGEST, canonical, is_same, plain_text, read_canonical
from apps.trust.chain import first_link, next_link
from apps.trust.keys import key_id, private_key, public_key
from apps.trust.signed import MANIFEST, ORDER, SignatureError, read_signed, sign

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"
SIGNATURE = (
    "997191fddd05b5a56af3370eef45261625b9998ae06201a5e5f77a63301a4a6e"
    "c8d0670b1127cd722339afd2831e42c54dc087e0f34cc5cedc2558303240ec0e"
)
texts = st.text(max_size=20).map(lambda text: unicodedata.normalize("NFC", text)).filter(str.isprintable)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
with_floats = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def test_the_published_vectors() -> None:
    signed = sign(MANIFEST, {"b": 1, "a": "é"}, KEY)
    assert signed == {"statement": '{"a":"é","b":1}', "key": PUBLIC, "signature": SIGNATURE}
    link = first_link("crossfed/journal/v1", b'{"campaign":"toy"}')
    links = [link]
    for record in ({"event": "round_started", "n": 1}, {"event": "update", "n": 2}):
        links.append(link := next_link(link, canonical(record)))
    assert links == [
        "5de394f5c3c5175c27415f32c51db807e3df1098b175e0f1d795148dc65d8b8d",
        "7d0da7268888d2cc40021ebd6cbd622bd2db89b9e574d1e7a27a7dbe78918306",
        "e382bc498597690da6c545435365d5cc5684b919fefe0f50176f9b34845a3910",
    ]
    assert key_id(PUBLIC) == hashlib.sha256(bytes.fromhex(PUBLIC)).hexdigest()[:16]


@given(value=values)
def test_canonical_json_comes_back_and_has_one_form(value: Any) -> None:
    content = canonical(value)
    assert read_canonical(content) == value and canonical(read_canonical(content)) == content
    loose = json.dumps(value, indent=1).encode()
    if loose != content:
        with pytest.raises(ValueError, match="."):
            read_canonical(loose)


@given(value=with_floats)
def test_what_is_signed_says_the_same_as_the_plain_value_and_nothing_else(value: Any) -> None:
    said = plain_text(value)
    assert is_same(read_canonical(canonical(said)), value)
    assert not is_same([said], value) and not is_same({"x": said}, value)


@pytest.mark.parametrize(
    ("said", "value"), [("1", 1), (1, True), (True, 1), ("0.5", 0.25), ("x", 0.5), (None, 0.0), (True, 1.0), (0, False)]
)
def test_other_values_are_not_the_same(said: Any, value: Any) -> None:
    assert not is_same(said, value)


@pytest.mark.parametrize(
    "value", [0.5, float("nan"), 2**53, -(2**53), "e\u0301", {"e\u0301": 1}, {1: 2}, {1, 2}, [[[0.5]]], b"x", "\ud800"]
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="."):
        canonical(value)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1,"a":1}',
        b"NaN",
        b"[Infinity]",
        b"1.0",
        b"1e3",
        b"-0",
        b"9007199254740992",
        b"1" * 5000,
        b'{"b":1,"a":1}',
        b"[1, 2]",
        b'"\\u00e9"',
        b'"\xff"',
        b"[1]\n",
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b"",
    ],
)
def test_other_spellings_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        read_canonical(content)


@given(statement=st.dictionaries(texts, values, max_size=3), place=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_signature_holds_for_these_bytes_this_key_and_this_kind_only(
    statement: dict[str, Any], place: int, change: int
) -> None:
    signed = sign(ORDER, statement, KEY)
    assert read_signed(ORDER, signed, PUBLIC) == statement
    with pytest.raises(SignatureError):
        read_signed(MANIFEST, signed, PUBLIC)
    with pytest.raises(SignatureError, match="another key"):
        read_signed(ORDER, signed, "0" * 64)
    for field, text in signed.items():
        changed = bytearray(str(text), "utf-8")
        changed[place % len(changed)] ^= change
        with pytest.raises((SignatureError, UnicodeError)):
            read_signed(ORDER, {**signed, field: changed.decode()})  # type: ignore[typeddict-item]


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path, found = tmp_path / "keys" / "site.key", []
    threads = [threading.Thread(target=lambda: found.append(public_key(private_key(path)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 8
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path] and len(path.read_bytes()) == 32


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    private_key(path)
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"others can read this key \(mode 0640\).*chmod 600"):
        private_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(StorageError, match="no key: 5 bytes instead of 32"):
        private_key(path)
    assert path.read_bytes() == b"short"

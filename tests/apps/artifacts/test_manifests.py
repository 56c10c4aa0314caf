"""A manifest is used only if its update is there and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.artifacts.manifests import find_manifest, manifest_path, write_manifest
from apps.artifacts.store import artifact_path, save_tensors
from apps.base.identity import identity

PROJECT = Path(__file__).resolve().parents[3]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(parts=st.dictionaries(st.text(), plain, max_size=5))
def test_identity_depends_neither_on_order_nor_on_a_round_trip_through_json(parts):
    name = identity(parts)
    assert identity(dict(reversed(parts.items()))) == name
    assert identity(json.loads(json.dumps(parts))) == name
    assert len(name) == 32


def test_identity_differs_for_different_work():
    parts = {"code": "x", "training": {"steps": 3, "rate": 0.1}, "round": 1}
    others = [parts | {"round": 2}, parts | {"training": {"steps": 3, "rate": 0.2}}, parts | {"round": "1"}, {}]
    assert len({identity(p) for p in (parts, *others)}) == 5


def test_identity_is_the_same_in_every_process():
    parts = {"b": [1, 2.5, None], "a": {"y": True, "x": "ü"}}
    code = f"import sys; from apps.base.identity import identity; sys.stdout.write(identity({parts!r}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {identity(parts)}


@pytest.fixture
def manifest(tmp_path: Path) -> dict:
    artifact = save_tensors(tmp_path / "artifacts", {"w": torch.ones(3)}, "update")
    written = {"task_id": "t1", "artifact": artifact, "loss_last": 1.25, "reused": False}
    write_manifest(tmp_path, written)
    return written


def test_found_as_written(manifest, tmp_path):
    assert find_manifest(tmp_path, "t1") == manifest
    assert find_manifest(tmp_path, "t2") is None


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"artifact": 3}', '{"artifact": {"sha256": "x"}}', "\0"]
)
@pytest.mark.usefixtures("manifest")
def test_file_that_is_not_a_manifest_is_not_found(text, tmp_path):
    manifest_path(tmp_path, "t1").write_text(text)
    assert find_manifest(tmp_path, "t1") is None


@pytest.mark.usefixtures("manifest")
def test_bytes_that_are_not_text_are_not_found(tmp_path):
    manifest_path(tmp_path, "t1").write_bytes(b"\xff\xfe\x80")
    assert find_manifest(tmp_path, "t1") is None


def test_update_that_is_gone_or_altered_is_not_found(manifest, tmp_path):
    path = artifact_path(tmp_path / "artifacts", manifest["artifact"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\7")
    assert find_manifest(tmp_path, "t1") is None
    path.write_bytes(whole[:-1])
    assert find_manifest(tmp_path, "t1") is None
    path.unlink()
    assert find_manifest(tmp_path, "t1") is None
    path.write_bytes(whole)
    assert find_manifest(tmp_path, "t1") == manifest

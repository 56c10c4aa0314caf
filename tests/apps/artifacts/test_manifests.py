"""A manifest is used only if its update is there and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.artifacts.manifests import (
    HEADER_SPARE,
    find_manifest,
    manifest_path,
    remove_update,
    require_acceptable,
    write_manifest,
)
from apps.artifacts.store import artifact_path, save_tensors
from apps.base.errors import ArtifactError, UpdateRefused
from apps.base.identity import identity

PROJECT = Path(__file__).resolve().parents[3]
TASK = "0123456789abcdef" * 2
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


def found(folder: Path, task: str = TASK) -> Any:
    return find_manifest(folder / "root", task, folder / "out")


@pytest.fixture
def manifest(tmp_path: Path) -> dict:
    artifact = save_tensors(tmp_path / "out", {"w": torch.ones(3)}, "update")
    written = {"task_id": TASK, "artifact": artifact, "loss_last": 1.25, "reused": False}
    write_manifest(tmp_path / "root", tmp_path / "out", written)
    return written


def test_found_as_written(manifest, tmp_path):
    assert found(tmp_path) == manifest
    assert found(tmp_path, "0" * 32) is None


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"artifact": 3}', '{"artifact": {"sha256": "x"}}', "\0"]
)
@pytest.mark.usefixtures("manifest")
def test_file_that_is_not_a_manifest_is_not_found(text, tmp_path):
    manifest_path(tmp_path / "root" / "manifests", TASK).write_text(text)
    assert found(tmp_path) is None


@pytest.mark.usefixtures("manifest")
def test_bytes_that_are_not_text_are_not_found(tmp_path):
    manifest_path(tmp_path / "root" / "manifests", TASK).write_bytes(b"\xff\xfe\x80")
    assert found(tmp_path) is None


def test_what_leaves_the_site_is_a_copy(manifest, tmp_path):
    leaving = manifest_path(tmp_path / "out", TASK)
    assert json.loads(leaving.read_text()) == manifest
    leaving.write_text("{}")  # by whoever reaches that folder
    assert found(tmp_path) == manifest
    leaving.unlink()
    assert found(tmp_path) == manifest and json.loads(leaving.read_text()) == manifest


@pytest.mark.parametrize(
    "name", ["../" * 20 + "models/model", "a" * 63, "A" * 64, "a" * 64 + "\n", "/etc/x", "", 7, None, ["a" * 64]]
)
def test_a_name_is_no_path(name, tmp_path):
    with pytest.raises(ArtifactError, match="is no name of an artifact"):
        artifact_path(tmp_path, {"sha256": name, "nbytes": 1, "kind": "update"})
    task = name[32:] if isinstance(name, str) else name  # half as long
    with pytest.raises(ArtifactError, match="is no task id"):
        manifest_path(tmp_path, task)


@pytest.mark.parametrize("nbytes", [10**12, 1 << 30, 0, -1, 10.0, "12", True, None, 10**400])
def test_a_size_is_known_before_bytes_move(nbytes, tmp_path):
    base = {"sha256": "b" * 64, "nbytes": 1000, "kind": "model"}
    artifact = {"sha256": "a" * 64, "nbytes": 1000 + HEADER_SPARE, "kind": "update"}
    require_acceptable({"task_id": TASK, "artifact": artifact}, base)
    with pytest.raises(UpdateRefused, match="an update of this model at most 66,536"):
        require_acceptable({"task_id": TASK, "artifact": {**artifact, "nbytes": nbytes}}, base)
    with pytest.raises(UpdateRefused, match="update refused: its manifest lacks 'artifact'"):
        require_acceptable({"task_id": TASK}, base)


def test_update_that_is_gone_or_altered_is_not_found(manifest, tmp_path):
    path = artifact_path(tmp_path / "out", manifest["artifact"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\7")
    assert found(tmp_path) is None
    path.write_bytes(whole[:-1])
    assert found(tmp_path) is None
    path.unlink()
    assert found(tmp_path) is None
    path.write_bytes(whole)
    assert found(tmp_path) == manifest


def test_what_others_put_beside_an_update_neither_hangs_nor_breaks_its_deletion(manifest, tmp_path):
    out = tmp_path / "out"
    odd = [out / "x.json", out / f"{'a' * 32}.json", out / f"{'b' * 32}.json", out / f"{'c' * 32}.json"]
    os.mkfifo(odd[0])
    os.mkfifo(odd[1])
    odd[2].write_text("[" * 100_000)
    odd[3].symlink_to("/dev/zero")
    remove_update(out, manifest["artifact"])
    assert sorted(out.iterdir()) == sorted(odd)


@pytest.mark.usefixtures("manifest")
def test_a_manifest_that_is_no_file_or_nested_without_end_is_not_found(tmp_path):
    own = manifest_path(tmp_path / "root" / "manifests", TASK)
    own.write_text("[" * 100_000)
    assert found(tmp_path) is None
    own.unlink()
    os.mkfifo(own)
    assert found(tmp_path) is None

"""A site keeps what its next training needs, and deletes what the server has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.base.errors import StorageError
from apps.base.identity import Place
from apps.transfer import forget

PLACE = Place(site="aurora", round=3)
SHAS = [letter * 64 for letter in "abcd"]


def of(sha: str) -> Any:
    return {"artifact": {"sha256": sha, "nbytes": 5, "kind": "model"}}


def fill(root: Path) -> Path:
    store = root / "artifacts"
    store.mkdir(parents=True)
    for sha in SHAS:
        (store / f"{sha}.safetensors").write_bytes(b"12345")
    return store


def test_the_finished_training_s_model_and_update_are_deleted(tmp_path: Path) -> None:
    store = fill(tmp_path)
    result = forget(PLACE, str(tmp_path), of(SHAS[2]), of(SHAS[0]), of(SHAS[1]))
    assert sorted(path.stem for path in store.iterdir()) == SHAS[2:]
    assert result["removed"] == SHAS[:2]
    assert result["started"] <= result["ended"]


def test_a_model_that_is_used_again_is_kept(tmp_path: Path) -> None:
    store = fill(tmp_path)
    assert forget(PLACE, str(tmp_path), of(SHAS[0]), of(SHAS[0]), of(SHAS[1]))["removed"] == [SHAS[1]]
    assert (store / f"{SHAS[0]}.safetensors").exists()


def test_what_is_gone_already_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path)
    first = forget(PLACE, str(tmp_path), of(SHAS[2]), of(SHAS[0]), of(SHAS[1]))
    assert forget(PLACE, str(tmp_path), of(SHAS[2]), of(SHAS[0]), of(SHAS[1]))["removed"] == first["removed"]


def test_nothing_outside_the_root_is_touched(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "artifacts").symlink_to(outside)
    with pytest.raises(StorageError, match="site aurora, round 3"):
        forget(PLACE, str(tmp_path / "site"), of(SHAS[2]), of(SHAS[0]), of(SHAS[1]))
    assert len(list(outside.iterdir())) == 4

"""A site keeps what its next training needs, and deletes what the server has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.base.errors import StorageError
from apps.base.identity import Place
from apps.transfer import forget

PLACE = Place(site="aurora", round=3)
SHAS = [letter * 64 for letter in "abcd"]
TASK = "e" * 32


def of(sha: str) -> Any:
    return {"artifact": {"sha256": sha, "nbytes": 5, "kind": "model"}}


def fill(root: Path) -> list[Path]:
    """Fill the folder of what is sent to a site and that of what leaves it; return both."""
    folders = [root / "in", root / "out"]
    for folder in folders:
        folder.mkdir(parents=True)
        for sha in SHAS:
            (folder / f"{sha}.safetensors").write_bytes(b"12345")
    (root / "out" / f"{TASK}.json").write_text(json.dumps(of(SHAS[1])))
    return folders


def forgotten(root: Path, base: str, earlier: str, update: str) -> dict[str, Any]:
    return forget(PLACE, f"{root}/in", f"{root}/out", of(base), of(earlier), of(update))


def test_the_finished_training_s_model_and_update_are_deleted(tmp_path: Path) -> None:
    incoming, outgoing = fill(tmp_path)
    result = forgotten(tmp_path, SHAS[2], SHAS[0], SHAS[1])
    assert sorted(path.stem for path in incoming.iterdir()) == SHAS[1:]
    assert sorted(path.stem for path in outgoing.iterdir()) == [SHAS[0], *SHAS[2:]]
    assert result["removed"] == {str(incoming): [SHAS[0]], str(outgoing): [SHAS[1]]}
    assert result["started"] <= result["ended"]


def test_a_model_that_is_used_again_is_kept(tmp_path: Path) -> None:
    incoming, outgoing = fill(tmp_path)
    removed = forgotten(tmp_path, SHAS[0], SHAS[0], SHAS[1])["removed"]
    assert removed == {str(incoming): [], str(outgoing): [SHAS[1]]}
    assert (incoming / f"{SHAS[0]}.safetensors").exists()


def test_what_is_gone_already_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path)
    first = forgotten(tmp_path, SHAS[2], SHAS[0], SHAS[1])
    assert forgotten(tmp_path, SHAS[2], SHAS[0], SHAS[1])["removed"] == first["removed"]


def test_nothing_outside_the_folder_is_touched(tmp_path: Path) -> None:
    outside, _ = fill(tmp_path / "outside")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "in").symlink_to(outside)
    with pytest.raises(StorageError, match="site aurora, round 3"):
        forgotten(tmp_path / "site", SHAS[2], SHAS[0], SHAS[1])
    assert len(list(outside.iterdir())) == 4

"""Only artifacts are deleted, only those that nobody needs, and only after a while."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import StorageError
from apps.manifests import Place
from apps.tidy import tidy

PLACE = Place(site="aurora", round=2)
SHAS = [digit * 64 for digit in "abcdef"]


def fill(root: Path, names: list[str], age_s: float = 3600) -> Path:
    store = root / "artifacts"
    store.mkdir(parents=True, exist_ok=True)
    for name in names:
        (store / name).write_bytes(b"12345")
        os.utime(store / name, (time.time() - age_s,) * 2)
    return store


def test_all_but_the_ones_to_keep_are_deleted(tmp_path: Path):
    store = fill(tmp_path, [f"{sha}.safetensors" for sha in SHAS])
    result = tidy(PLACE, str(tmp_path), SHAS[:2])
    assert result["removed"] == SHAS[2:]
    assert result["nbytes"] == 4 * 5
    assert result["started"] <= result["ended"]
    assert sorted(path.stem for path in store.iterdir()) == SHAS[:2]
    assert tidy(PLACE, str(tmp_path), SHAS[:2])["removed"] == []


def test_what_was_set_aside_goes_too(tmp_path: Path):
    store = fill(tmp_path, [f"{SHAS[0]}.damaged", f"{SHAS[1]}.damaged"])
    assert tidy(PLACE, str(tmp_path), SHAS[:1])["removed"] == [SHAS[1]]
    assert [path.name for path in store.iterdir()] == [f"{SHAS[0]}.damaged"]


def test_what_is_not_an_artifact_stays(tmp_path: Path):
    names = ["notes.txt", "A" * 64 + ".safetensors", "a" * 63 + ".safetensors", f"{SHAS[0]}.safetensors.bak"]
    store = fill(tmp_path, [*names, ".part-0123"])
    other = tmp_path / "elsewhere"
    other.write_bytes(b"kept")
    (store / f"{SHAS[3]}.safetensors").symlink_to(other)
    (store / f"{SHAS[4]}.safetensors").mkdir()
    assert tidy(PLACE, str(tmp_path), [], spare_s=-1)["removed"] == []
    assert len(list(store.iterdir())) == 7


def test_what_is_new_stays_for_a_while(tmp_path: Path):
    fill(tmp_path, [f"{SHAS[0]}.safetensors"], age_s=60)
    assert tidy(PLACE, str(tmp_path), [])["removed"] == []
    assert tidy(PLACE, str(tmp_path), [], spare_s=30)["removed"] == SHAS[:1]


def test_a_second_name_frees_no_bytes(tmp_path: Path):
    store = fill(tmp_path, [f"{SHAS[0]}.safetensors"])
    os.link(store / f"{SHAS[0]}.safetensors", tmp_path / "other name")
    result = tidy(PLACE, str(tmp_path), [])
    assert (result["removed"], result["nbytes"]) == (SHAS[:1], 0)
    assert (tmp_path / "other name").read_bytes() == b"12345"


def test_a_site_without_a_store_has_nothing_to_tidy(tmp_path: Path):
    assert tidy(PLACE, str(tmp_path / "nowhere"), [])["removed"] == []


def test_a_store_that_leads_elsewhere_is_refused(tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "artifacts").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="site aurora, round 2: path leads outside"):
        tidy(PLACE, str(tmp_path / "site"), [])


@given(kept=st.sets(st.sampled_from(SHAS)), there=st.sets(st.sampled_from(SHAS)))
def test_what_is_kept_and_what_is_removed_make_up_what_was_there(kept, there, tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    store = fill(root, [f"{sha}.safetensors" for sha in there])
    removed = set(tidy(PLACE, str(root), sorted(kept))["removed"])
    assert removed == there - kept
    assert {path.stem for path in store.iterdir()} == there & kept

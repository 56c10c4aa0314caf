"""A site's private shard: written once, verified, rebuilt when damaged, never outside its root."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apps.base.errors import StorageError
from apps.training.shard import open_shard, read_shard
from data.definition import definition_sha256
from data.files import atomic_file, gzip_bytes
from data.records import canonical_line, load_records
from data.tasks import Record

TASKS = ["retrosynthesis", "forward_synthesis"]


def state(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


def test_shard_holds_the_records_of_the_request(tmp_path: Path) -> None:
    shard = open_shard(tmp_path, "embedded", TASKS, 5)
    assert shard.samples == 10
    assert shard.per_task == {"forward_synthesis": 5, "retrosynthesis": 5}
    assert shard.path == tmp_path / "shard" / f"{shard.sha256}.jsonl"
    assert shard.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
    assert shard.sha256 == definition_sha256("embedded", TASKS, "train", 5)
    assert read_shard(tmp_path, shard.sha256) == load_records("embedded", "train", TASKS, 5)


def test_second_call_finds_it_and_writes_nothing(tmp_path: Path) -> None:
    first = open_shard(tmp_path, "embedded", TASKS, 5)
    before = {p: state(p) for p in (tmp_path / "shard").iterdir()}
    assert open_shard(tmp_path, "embedded", TASKS[::-1], 5) == first
    assert {p: state(p) for p in (tmp_path / "shard").iterdir()} == before


def test_different_requests_have_different_shards(tmp_path: Path) -> None:
    one = open_shard(tmp_path, "embedded", TASKS, 5)
    other = open_shard(tmp_path, "embedded", TASKS, 6)
    dev = open_shard(tmp_path, "embedded", TASKS, 5, split="dev")
    assert len({one.sha256, other.sha256, dev.sha256}) == 3
    assert open_shard(tmp_path, "embedded", TASKS, 5) == one


def test_damaged_shard_is_refused_and_rebuilt(tmp_path: Path) -> None:
    shard = open_shard(tmp_path, "embedded", TASKS, 5)
    good = shard.path.read_bytes()
    shard.path.write_bytes(good[:-10])
    with pytest.raises(ValueError, match="damaged"):
        read_shard(tmp_path, shard.sha256)
    assert open_shard(tmp_path, "embedded", TASKS, 5) == shard
    assert shard.path.read_bytes() == good


@pytest.mark.parametrize("damage", ["{", "[]", '{"sha256": "../../x"}', '{"sha256": 3, "fingerprint": null}'])
def test_damaged_index_is_rebuilt(tmp_path: Path, damage: str) -> None:
    shard = open_shard(tmp_path, "embedded", TASKS, 5)
    index = next((tmp_path / "shard").glob("request-*.json"))
    index.write_text(damage)
    assert open_shard(tmp_path, "embedded", TASKS, 5) == shard
    assert json.loads(index.read_text())["sha256"] == shard.sha256


def test_deleted_shard_is_rebuilt(tmp_path: Path) -> None:
    shard = open_shard(tmp_path, "embedded", TASKS, 5)
    shard.path.unlink()
    with pytest.raises(FileNotFoundError, match="open_shard writes it"):
        read_shard(tmp_path, shard.sha256)
    assert open_shard(tmp_path, "embedded", TASKS, 5) == shard


def test_changed_source_is_read_again_and_a_vanished_one_is_not_needed(
    tmp_path: Path, sample_records: list[Record]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = [canonical_line({**r, "split": "train"}) for r in sample_records]  # type: ignore[typeddict-item]
    (source / "train.jsonl").write_text("".join(lines))
    first = open_shard(tmp_path / "site", str(source), TASKS, None)
    (source / "train.jsonl").write_text("".join(lines[:-1]))
    second = open_shard(tmp_path / "site", str(source), TASKS, None)
    assert (first.samples, second.samples) == (6, 5)
    shutil.rmtree(source)
    assert open_shard(tmp_path / "site", str(source), TASKS, None) == second
    second.path.unlink()
    with pytest.raises(FileNotFoundError, match="no data at"):
        open_shard(tmp_path / "site", str(source), TASKS, None)


def test_shard_is_private(tmp_path: Path) -> None:
    (tmp_path / "shard").mkdir(mode=0o755)
    shard = open_shard(tmp_path, "embedded", TASKS, 1)
    assert (tmp_path / "shard").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "shard").iterdir()} == {0o600}
    assert shard.path.parent == tmp_path / "shard"


@pytest.mark.parametrize(
    "name", ["", "../secret", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "../" * 21 + "a"]
)
def test_name_that_is_not_a_hash_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a shard"):
        read_shard(tmp_path, name)


def test_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "site", tmp_path / "outside"
    outside.mkdir()
    shard = open_shard(root, "embedded", TASKS, 1)
    shutil.move(shard.path, outside / shard.path.name)
    shard.path.symlink_to(outside / shard.path.name)
    with pytest.raises(StorageError, match="outside"):
        read_shard(root, shard.sha256)
    assert open_shard(root, "embedded", TASKS, 1) == shard
    assert not shard.path.is_symlink()


def test_folder_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "site", tmp_path / "outside"
    root.mkdir()
    shard = open_shard(outside, "embedded", TASKS, 1)
    (root / "shard").symlink_to(outside / "shard")
    with pytest.raises(StorageError, match="outside"):
        open_shard(root, "embedded", TASKS, 1)
    with pytest.raises(StorageError, match="outside"):
        read_shard(root, shard.sha256)


def test_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    shard = open_shard(tmp_path / "link", "embedded", TASKS, 1)
    assert len(read_shard(tmp_path / "link", shard.sha256)) == 2


def test_several_ranks_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        shards = list(pool.map(lambda _: open_shard(tmp_path, "embedded", TASKS, 20), range(8)))
    assert len({shard.sha256 for shard in shards}) == 1
    assert len(read_shard(tmp_path, shards[0].sha256)) == 40
    assert sorted(p.suffix for p in (tmp_path / "shard").iterdir()) == [".index", ".json", ".jsonl"]


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        open_shard(tmp_path, "embedded", TASKS, 1)
    assert list((tmp_path / "shard").iterdir()) == []


def test_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one task"):
        open_shard(tmp_path, "embedded", [], 1)


def test_atomic_file_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path, path.name) as handle:
        handle.write(b"half of")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_gzip_has_no_time_in_it() -> None:
    packed = gzip_bytes(b"text")
    assert packed[4:8] == b"\0\0\0\0"
    assert packed == gzip_bytes(b"text")

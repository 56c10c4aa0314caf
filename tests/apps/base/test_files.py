"""Atomic files, and paths that cannot leave a site's storage."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from apps.base.errors import ArtifactError, StorageError, StorageUnavailable, placed
from apps.base.files import atomic_file, cannot_read, inside, remove_unfinished, write_json, write_text


def test_file_appears_only_when_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "new", "file") as stream:
        stream.write(b"content")
        stream.flush()
        assert not (tmp_path / "new" / "file").exists()
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"]


def test_name_may_be_a_function_called_at_the_end(tmp_path):
    names = []
    with atomic_file(tmp_path, lambda: names[0]) as stream:
        stream.write(b"x")
        names.append("late")
    assert (tmp_path / "late").read_bytes() == b"x"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_failure_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_file(tmp_path, "file") as stream:
        stream.write(b"half of the new")
        raise error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        write_json(tmp_path / "file.json", {})
    assert caught.value.file == str(tmp_path / "file.json")
    assert "No space left on device" in str(caught.value)
    assert caught.value.remedy


def test_folder_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError), atomic_file(folder, "x"):
            pass


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_mode_respects_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_json_is_stable_and_text_is_utf8(tmp_path):
    write_json(tmp_path / "one", {"b": 1, "a": [1.5, None, "ü"]})
    write_json(tmp_path / "two", {"a": [1.5, None, "ü"], "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads((tmp_path / "one").read_text()) == {"b": 1, "a": [1.5, None, "ü"]}
    write_text(tmp_path / "text", "Å")
    assert (tmp_path / "text").read_bytes() == "Å".encode()


def test_inside_gives_paths_below_the_root(tmp_path):
    assert inside(tmp_path, "a", "b") == (tmp_path / "a" / "b").resolve()
    assert inside(tmp_path) == tmp_path.resolve()
    assert inside(tmp_path, "a", "..", "b") == (tmp_path / "b").resolve()


@pytest.mark.parametrize("part", ["..", "../other", "a/../../other", "/etc/passwd"])
def test_inside_refuses_to_leave(part, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(StorageError, match="outside"):
        inside(root, part)


def test_inside_refuses_a_sibling_with_the_same_prefix(tmp_path):
    with pytest.raises(StorageError):
        inside(tmp_path / "site", "../site-2/file")


def test_inside_follows_links(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (root / "out").symlink_to(other)
    (root / "loop").symlink_to(root)
    with pytest.raises(StorageError) as caught:
        inside(root, "out", "file")
    assert caught.value.file == str(other / "file")
    assert inside(root, "loop", "file") == root / "file"
    (tmp_path / "link").symlink_to(root)  # the root itself may be one
    assert inside(tmp_path / "link", "file") == root / "file"


def test_unfinished_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    deep = tmp_path / "artifacts"
    deep.mkdir()
    for path in (tmp_path / ".part-1", deep / ".part-2", deep / "whole"):
        path.write_text("x")
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["whole"]
    remove_unfinished(tmp_path / "not there")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESTALE, StorageUnavailable),  # the file server was restarted: the file is as good as before
        (errno.ETIMEDOUT, StorageUnavailable),
        (errno.EIO, ArtifactError),  # a bad sector: the file is made again
        (errno.ENOENT, ArtifactError),
        (errno.EACCES, ArtifactError),
    ],
)
def test_a_server_that_does_not_answer_says_nothing_about_a_file(number: int, kind: type[Exception]) -> None:
    error = cannot_read("/far/x", OSError(number, os.strerror(number)))
    assert type(error) is kind and str(error).startswith(f"cannot read: {os.strerror(number)} (/far/x)")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_an_error_of_the_disk_anywhere_in_a_task_is_the_storages(number: int) -> None:
    with pytest.raises(StorageUnavailable) as raised, placed("aurora", 3):
        raise OSError(number, os.strerror(number), "/far/tmp/x")
    assert str(raised.value).startswith(f"site aurora, round 3: storage fails: {os.strerror(number)} (/far/tmp/x)")

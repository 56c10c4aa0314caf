"""The journal: whole records only, in order, from any thread, also after a crash and on a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from campaigns import environment
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import StorageError, UserMistake
from workflows.records.journal import START, Journal, links, read_journal, require_unaltered


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    for number in range(3):
        journal.write("thing", number=number)
    assert [r["number"] for r in read_journal(journal.path)] == [0, 1, 2]
    assert [r["seq"] for r in Journal(journal.path).records] == [1, 2, 3]
    assert [r["number"] for r in journal.events("thing")] == [0, 1, 2] and not list(journal.events("other"))


@given(cut=st.integers(0, 400))
def test_cut_off_anywhere_it_keeps_its_whole_records(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "j.jsonl"
    journal = Journal(path)
    for number in range(4):
        journal.write("thing", number=number, text="ä" * 10)
    journal.close()
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    again = Journal(path)
    assert len(again.records) == content.count(b"\n")
    again.write("thing", number=9)
    assert [r["seq"] for r in read_journal(path)] == list(range(1, len(again.records) + 1))
    require_unaltered(path)


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "j.jsonl")
    for number in range(3):
        journal.write("thing", number=number, loss=0.1)
    journal.close()
    return journal.path


def test_each_line_has_the_link_of_its_bytes_and_of_all_before(chained: Path) -> None:
    head = START
    for line in chained.read_text().splitlines():
        record = json.loads(line)
        content = line[: line.index(',"chain"')] + "}"
        head = hashlib.sha256(bytes.fromhex(head) + content.encode()).hexdigest()
        assert record["chain"] == head
    assert [r["chain"] for r in Journal(chained).records][-1] == head == Journal(chained).head
    require_unaltered(chained)


@pytest.mark.parametrize("line", [1, 2, 3])
def test_every_changed_byte_of_a_line_is_found_and_only_that_line_is_named(chained: Path, line: int) -> None:
    content = chained.read_bytes()
    begin = sum(len(part) for part in content.splitlines(keepends=True)[: line - 1])
    for place in range(begin, content.index(b"\n", begin)):
        changed = bytearray(content)
        changed[place] = 0x7E if changed[place] != 0x7E else 0x7D
        chained.write_bytes(changed)
        assert [number for number, found, expected in links(chained) if found != expected] == [line], place
        with pytest.raises(UserMistake, match=f"line {line} is not as it was written"):
            require_unaltered(chained)


def test_a_line_that_is_removed_moved_or_stripped_of_its_link_is_found(chained: Path) -> None:
    one, two, three = chained.read_text().splitlines()
    bare = one[: one.index(',"chain"')] + "}"
    for lines in ([one, three], [two, three], [one, three, two], [one, two, two, three], [bare, two, three]):
        chained.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(UserMistake, match="is not as it was written"):
            require_unaltered(chained)


def test_a_damaged_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"seq":1,"event":"a"}\nrubbish\n{"seq":3,"event":"c"}\n')
    with pytest.raises(UserMistake, match="line 2 is not a record"):
        Journal(path)


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    threads = [threading.Thread(target=lambda: [journal.write("x") for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r["seq"] for r in read_journal(journal.path)] == list(range(1, 101))


def test_a_failed_write_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.write("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            journal.write("lost")
    journal.write("after")
    assert [r["event"] for r in read_journal(journal.path)] == ["before", "after"]
    require_unaltered(journal.path)


FULL_DISK = """
import resource, sys
from pathlib import Path
from apps.base.errors import StorageError
from workflows.records.journal import Journal
journal = Journal(Path(sys.argv[1]))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
try:
    for number in range(100):
        journal.write("thing", number=number)
except StorageError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], env=environment(), capture_output=True, text=True, check=True
    )
    assert "cannot write: File too large" in ended.stdout and str(path) in ended.stdout
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.stat().st_size <= 700 and [r["number"] for r in records] == list(range(len(records))) and records

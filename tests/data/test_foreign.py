"""Files and JSON of others are read in bounded time, or refused by one of two kinds of error."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data.foreign import DEEPEST, LONGEST, MOST_VALUES, open_own, parse_json, read_json, read_small, read_start


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, link, plain = tmp_path / "pipe", tmp_path / "link", tmp_path / "plain"
    os.mkfifo(pipe)
    plain.write_text('{"a": 1}')
    link.symlink_to(plain)
    for odd in (pipe, link, tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(OSError):
            read_small(odd, 100)
    for odd in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_start(odd, 100, follow=True)
    assert read_json(plain, 100) == read_json(link, 100, follow=True) == {"a": 1}


def test_no_more_is_read_than_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)  # as large as it likes: it has no blocks
    assert read_start(path, 5) == bytes(5)
    with pytest.raises(ValueError, match=r"x.json has more than 5 bytes"):
        read_small(path, 5)


def test_a_file_to_be_written_is_not_emptied_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), open(tmp_path / "link", "w", opener=open_own):
        pass
    assert (tmp_path / "victim").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 1_000_000, "more than 32 levels deep"),
        ('{"a":' * 50_000, "levels deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "levels deep"),
        ('"' + "[" * 100, "not JSON"),
        ('{"a": 1, "a": 2}', "names the same field twice"),
        ("9" * 5000, "integer string conversion"),
        ("[" + "[]," * 3_000_000 + "0]", "values, at most"),
        ("[" + "0," * MOST_VALUES + "0]", f"at most {MOST_VALUES:,} are read"),
        ("[" + "[]," * MOST_VALUES + "0]", f"at most {MOST_VALUES:,} are read"),
        (" " * (LONGEST + 1), "characters, at most"),
        ('{"secret":', "not JSON: Expecting value in line 1 at character 10$"),
        ("", "not JSON"),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_json_or_too_much_is_a_value_error(text: str, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=problem):
        parse_json(text)
    assert time.process_time() - began < 1


def test_what_is_within_texts_counts_neither_as_depth_nor_as_values() -> None:
    text = '"\\\\' + '[{,\\"' * 40_000 + '"'
    assert parse_json(f"[{text}, 1]")[1] == 1
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert parse_json('{"a": 1, "a": 2}', repeated=True) == {"a": 2}


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    assert parse_json('"\\ud83d\\ude00"', halves=False) == "\U0001f600"
    assert parse_json('"\\ud800"') == "\ud800"  # as a site's error with the name of a file may have it
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json('{"a": ["\\ud800"]}', halves=False)

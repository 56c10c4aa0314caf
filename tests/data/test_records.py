"""Tests of records from the embedded set and from folders of complete records."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from data import records as module
from data.records import FIELDS, canonical_line, count_records, load_records
from data.tasks import EMBEDDED_FAMILIES, EMBEDDED_TASKS, Record

NAMES = EMBEDDED_FAMILIES["name_conversion"]


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(("split", "number"), [("train", 400), ("dev", 40), ("test", 40)])
def test_embedded_split_has_equal_numbers_of_every_task(split: str, number: int) -> None:
    rows = load_records("embedded", split)
    assert [r["task"] for r in rows] == [task for task in EMBEDDED_TASKS for _ in range(number)]
    assert {r["split"] for r in rows} == {split}
    assert len({r["sample_id"] for r in rows}) == len(rows)
    assert all(tuple(r) == FIELDS for r in rows)


def test_embedded_records_hold_their_raw_values() -> None:
    for row in load_records("embedded", "test"):
        assert row["raw_input"] in row["input"]
        assert row["raw_output"] in row["output"]
        for tag in (row["output_core_tag_left"], row["output_core_tag_right"]):
            assert tag is None or tag in row["output"]


def test_no_text_is_in_train_and_test() -> None:
    def asked(split: str) -> set[str]:
        rows = load_records("embedded", split)
        return {r["raw_input"] for r in rows if r["input_core_tag_left"] is not None}

    assert not asked("train") & asked("test")
    assert not asked("train") & asked("dev")
    assert not asked("dev") & asked("test")


def test_validation_is_dev() -> None:
    assert load_records("embedded", "validation", per_task=2) == load_records("embedded", "dev", per_task=2)


def test_tasks_come_in_canonical_order_and_limited() -> None:
    rows = load_records("embedded", "train", ["retrosynthesis", "name_conversion"], per_task=3)
    assert [r["task"] for r in rows] == [task for task in (*NAMES, "retrosynthesis") for _ in range(3)]
    assert rows == load_records("embedded", "train", [*reversed(NAMES), "retrosynthesis"], per_task=3)


def test_one_family_opens_only_its_own_files(monkeypatch) -> None:
    opened = []
    original = module.open_text

    def watched(path: Path) -> IO[str]:
        opened.append(path.name)
        return original(path)

    monkeypatch.setattr(module, "open_text", watched)
    load_records("embedded", "test", ["chemical_reaction"])
    assert opened == ["forward_synthesis.jsonl.gz", "retrosynthesis.jsonl.gz"]


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz", "test/part-0.jsonl", "test/part-0.jsonl.gz"])
def test_folder_of_mixed_files(tmp_path: Path, sample_records: list[Record], name: str) -> None:
    write_lines(tmp_path / name, sample_records[::-1])
    rows = load_records(str(tmp_path), "test")
    # Canonical task order, and within a task the order of the file.
    assert [r["task"] for r in rows] == [r["task"] for r in sample_records]
    assert [r["sample_id"] for r in rows[:3]] == [r["sample_id"] for r in sample_records[2::-1]]
    assert load_records(str(tmp_path), "test", ["retrosynthesis"], per_task=1) == [sample_records[-1]]


@pytest.mark.parametrize(("wanted", "per_task"), [(None, None), (None, 1), (["retrosynthesis"], None), (NAMES, 2)])
def test_large_mixed_files_are_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[str] | None, per_task: int | None
) -> None:
    rows = [
        row
        for group in zip(*[load_records("embedded", "train", [t], 6) for t in EMBEDDED_TASKS], strict=True)
        for row in group
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    expected = load_records(str(tmp_path), "train", wanted, per_task)
    monkeypatch.setattr(module, "HELD_RECORDS", 3)
    assert load_records(str(tmp_path), "train", wanted, per_task) == expected


def test_folder_of_task_files(tmp_path: Path, sample_records: list[Record]) -> None:
    for task in EMBEDDED_TASKS:
        write_lines(tmp_path / "test" / f"{task}.jsonl", [r for r in sample_records if r["task"] == task])
    assert load_records(str(tmp_path), "test") == sample_records
    picked = load_records(str(tmp_path), "test", [NAMES[1]], per_task=2)
    assert picked == [r for r in sample_records if r["task"] == NAMES[1]][:2]


def test_parquet(tmp_path: Path, sample_records: list[Record]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "validation-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(sample_records), path)
    rows = load_records(str(tmp_path), "dev")
    assert rows == [{**r, "split": "dev"} for r in sample_records]
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        load_records(str(tmp_path), "dev")


def test_missing_sample_id_and_target_are_filled_in(tmp_path: Path, sample_records: list[Record]) -> None:
    early = {k: v for k, v in sample_records[0].items() if k not in ("sample_id", "target", "split")}
    write_lines(tmp_path / "train.jsonl", [early, early])
    rows = load_records(str(tmp_path), "train")
    assert [r["sample_id"] for r in rows] == ["train.jsonl:1", "train.jsonl:2"]
    assert rows[0]["target"] is None
    assert rows[0]["split"] == "train"


def test_tasks_of_a_users_own(tmp_path: Path, sample_records: list[Record]) -> None:
    write_lines(tmp_path / "train" / "colour.jsonl", [{**sample_records[0], "task": "colour"}])
    assert load_records(str(tmp_path), "train", ["colour"])[0]["task"] == "colour"
    assert load_records(str(tmp_path), "train")[0]["task"] == "colour"


def test_missing_source_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.*embedded"):
        load_records(str(tmp_path / "nowhere"), "train")


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'.*did you mean 'test'"):
        load_records("embedded", "tset")
    with pytest.raises(ValueError, match="test_subset"):
        load_records("embedded", "test_subset")


def test_missing_split(tmp_path: Path, sample_records: list[Record]) -> None:
    write_lines(tmp_path / "test.jsonl", sample_records)
    with pytest.raises(ValueError, match="no record in split 'train'"):
        load_records(str(tmp_path), "train")


def test_missing_task(tmp_path: Path, sample_records: list[Record]) -> None:
    with pytest.raises(ValueError, match="'property_prediction-lipo'.*did you mean 'property_prediction-logp'"):
        load_records("embedded", "test", ["property_prediction-lipo"])
    write_lines(tmp_path / "test.jsonl", sample_records)
    with pytest.raises(ValueError, match="no record of the task 'colour'"):
        load_records(str(tmp_path), "test", ["colour"])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("train.jsonl", "train.jsonl.gz"), "train.jsonl and train.jsonl.gz"),
        (("train.jsonl", "train/part-0.jsonl"), "train.jsonl and train/part-0.jsonl"),
        (("train/a.jsonl", "train/a.jsonl.gz"), "train/a.jsonl and train/a.jsonl.gz"),
        (("dev.jsonl", "validation.jsonl"), "dev.jsonl and validation.jsonl"),
        (("dev/a.jsonl", "valid.jsonl.gz"), "dev/a.jsonl and valid.jsonl.gz"),
    ],
)
def test_a_split_that_is_there_twice_is_refused(
    tmp_path: Path, sample_records: list[Record], names: tuple[str, str], shown: str
) -> None:
    """Each record would count twice, and with ``weights: samples`` the site would."""
    for name in names:
        write_lines(tmp_path / name, sample_records)
    split = "train" if names[0].startswith("train") else "dev"
    with pytest.raises(ValueError, match=f"the split {split} is there twice, as {shown}; keep one"):
        load_records(str(tmp_path), split)


def test_files_of_parts_and_hidden_files_beside_them(tmp_path: Path, sample_records: list[Record]) -> None:
    """A folder may have several files, packed or not; what macOS writes beside each is no part of it."""
    half = len(sample_records) // 2
    write_lines(tmp_path / "train" / "a.jsonl", sample_records[:half])
    write_lines(tmp_path / "train" / "b.jsonl.gz", sample_records[half:])
    (tmp_path / "train" / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07\xb0\xff")
    found = load_records(str(tmp_path), "train")
    assert sorted(r["sample_id"] for r in found) == sorted(r["sample_id"] for r in sample_records)


def test_a_byte_order_mark_is_skipped(tmp_path: Path, sample_records: list[Record]) -> None:
    write_lines(tmp_path / "train.jsonl", sample_records)
    before = load_records(str(tmp_path), "train")
    plain = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + plain)
    assert load_records(str(tmp_path), "train") == before


def test_records_are_counted_up_to_a_limit() -> None:
    assert count_records("embedded", "test", ["retrosynthesis"], 1000) == {"retrosynthesis": 40}
    assert count_records("embedded", "train", ["name_conversion"], 7) == dict.fromkeys(NAMES, 7)


def test_malformed_line_names_file_and_line(tmp_path: Path, sample_records: list[Record]) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(sample_records[0]) + "\n\n{broken\n")
    with pytest.raises(ValueError, match=r"test\.jsonl, line 3: .*again"):
        load_records(str(tmp_path), "test")
    path.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="line 1: not a JSON object"):
        load_records(str(tmp_path), "test")


@pytest.mark.parametrize("field", ["input", "raw_output", "output_core_tag_left", "task"])
def test_missing_field_is_named(tmp_path: Path, sample_records: list[Record], field: str) -> None:
    faulty = {k: v for k, v in sample_records[0].items() if k != field}
    write_lines(tmp_path / "test.jsonl", [sample_records[1], faulty])
    with pytest.raises(ValueError, match=f"line 2: the field '{field}' is missing"):
        load_records(str(tmp_path), "test")


def test_field_of_wrong_type_is_named(tmp_path: Path, sample_records: list[Record]) -> None:
    write_lines(tmp_path / "test.jsonl", [{**sample_records[0], "raw_output": 3.5}])
    with pytest.raises(ValueError, match="'raw_output' must be text, not of the type float"):
        load_records(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"0" * 5000, "line 1: train.jsonl.gz has a line of 1,000 char"),
        (b"\n" * 500_000, "unpacks to more than 200 times"),
    ],
)
def test_a_gzip_bomb(line: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one line is held that no record can be, and no file is unpacked without end."""
    monkeypatch.setattr("data.files.LONGEST_LINE", 1000)
    monkeypatch.setattr("data.files.SMALL_NBYTES", 1000)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(line))
    with pytest.raises(ValueError, match=told):
        load_records(str(tmp_path), "train", ["forward_synthesis"])


def test_truncated_gzip(tmp_path: Path, sample_records: list[Record]) -> None:
    path = tmp_path / "test.jsonl.gz"
    write_lines(path, sample_records)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="again"):
        load_records(str(tmp_path), "test")


def test_file_that_is_not_a_source(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match="neither"):
        load_records(str(path), "test")


def test_per_task_must_be_positive() -> None:
    with pytest.raises(ValueError, match="per_task"):
        load_records("embedded", "test", per_task=0)


def test_canonical_line_is_stable() -> None:
    row: Record = load_records("embedded", "test", per_task=1)[0]
    line = canonical_line(row)
    assert line.endswith("\n")
    assert list(json.loads(line)) == sorted(FIELDS)
    assert line == canonical_line(dict(reversed(row.items())))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[" * 100_000, "levels deep"),
        ('{"input": "\\ud800"}', "half of a surrogate pair"),
        ('{"a":' + "9" * 5000 + "}", "integer string"),
        (
            json.dumps({**dict.fromkeys(FIELDS, "x"), "input": {"secret": "of the site"}}),
            "must be text, not of the type dict",
        ),
    ],
    ids=lambda value: value[:12],
)
def test_a_hostile_line_is_a_mistake_of_its_file_that_tells_no_record(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(ValueError, match=problem) as caught:
        load_records(str(tmp_path), "train")
    assert "train.jsonl, line 1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_pipe_in_place_of_records_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(OSError, match="no regular file"):
        load_records(str(tmp_path), "train")

"""Tests of the published archive, written here from embedded records in its layout."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.definition import definition_sha256
from data.records import load_records
from data.tasks import Record

MakeArchive = Callable[..., Path]
COMPARED = ("task", "split", "raw_input", "raw_output", "input_core_tag_left", "output_core_tag_right")


def essence(records: list[Record]) -> list[tuple]:
    return [tuple(record[name] for name in COMPARED) for record in records]  # type: ignore[literal-required]


@pytest.fixture
def archive(tmp_path: Path, sample_records: list[Record], make_archive: MakeArchive) -> Path:
    return make_archive(tmp_path / "data.zip", sample_records)


def test_archive_gives_the_same_records(archive: Path, sample_records: list[Record]) -> None:
    rows = load_records(str(archive), "test")
    assert essence(rows) == essence(sample_records)
    assert rows[0]["sample_id"] == "name_conversion-i2f.test.0"
    for row in rows:
        assert row["raw_input"] in row["input"]
        assert "<INPUT>" not in row["input"]
        assert "<OUTPUT>" not in row["output"]


def test_values_are_between_tags_with_spaces(archive: Path) -> None:
    row = load_records(str(archive), "test", ["name_conversion-i2f"], per_task=1)[0]
    assert row["input"] == f"Work out the molecular formula of <IUPAC> {row['raw_input']} </IUPAC>."
    assert row["output"] == f"<MOLFORMULA> {row['raw_output']} </MOLFORMULA>"


def test_packed_unpacked_and_enclosing_folder_are_equal(
    tmp_path: Path, sample_records: list[Record], make_archive: MakeArchive
) -> None:
    (tmp_path / "in").mkdir()
    packed = make_archive(tmp_path / "in" / "data.zip", sample_records)
    with zipfile.ZipFile(packed) as handle:
        handle.extractall(tmp_path / "flat")
        handle.extractall(tmp_path / "nested" / "data")
    expected = load_records(str(packed), "test")
    for source in (tmp_path / "in", tmp_path / "flat", tmp_path / "nested"):
        assert load_records(str(source), "test") == expected
        assert definition_sha256(str(source), None, "test", 2) == definition_sha256(str(packed), None, "test", 2)


def test_a_folder_inside_the_zip_and_metadata_files_of_macos(
    tmp_path: Path, sample_records: list[Record], make_archive: MakeArchive
) -> None:
    packed = make_archive(tmp_path / "data.zip", sample_records, prefix="data/")
    with zipfile.ZipFile(packed, "a") as handle:
        handle.writestr("__MACOSX/data/core_tag/x.json", "")
    assert essence(load_records(str(packed), "test")) == essence(sample_records)


def test_the_test_subset_is_a_list_into_the_test_split(archive: Path) -> None:
    rows = load_records(str(archive), "test_subset", ["retrosynthesis"])
    whole = load_records(str(archive), "test", ["retrosynthesis"])
    assert [r["raw_input"] for r in rows] == [r["raw_input"] for r in whole[:2]]
    assert {r["split"] for r in rows} == {"test_subset"}


def test_task_filter_and_limit(archive: Path) -> None:
    rows = load_records(str(archive), "test", ["chemical_reaction"], per_task=1)
    assert [r["task"] for r in rows] == ["forward_synthesis", "retrosynthesis"]


def test_several_questions_about_one_molecule(tmp_path: Path) -> None:
    task = "property_prediction-sider"
    question = {"input": "Can <INPUT> cause <TARGET>?", "output": "<OUTPUT>"}
    raw = {"input": "CCO", "output": {"eye disorders": "Yes", "ear disorders": "No"}, "task": task}
    samples = [{"idx": 0, "template_id": 0, "target": name} for name in raw["output"]]
    listing = {"task": task, "split": "test", "template_name": "own", "samples": samples}
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as handle:
        tags = {"input": ["<SMILES>", "</SMILES>"], "output": ["<BOOLEAN>", "</BOOLEAN>"]}
        handle.writestr(f"core_tag/{task}.json", json.dumps(tags))
        handle.writestr(f"template/own/{task}.json", json.dumps([question]))
        handle.writestr(f"raw/test/{task}.jsonl", json.dumps(raw) + "\n")
        handle.writestr(f"sample/instruction_tuning/test/{task}.json", json.dumps(listing))
    rows = load_records(str(tmp_path), "test")
    assert [r["input"] for r in rows] == [
        "Can <SMILES> CCO </SMILES> cause eye disorders?",
        "Can <SMILES> CCO </SMILES> cause ear disorders?",
    ]
    assert [(r["target"], r["raw_output"]) for r in rows] == [("eye disorders", "Yes"), ("ear disorders", "No")]


def test_missing_part_names_it(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / "template" / "own" / "retrosynthesis.json").unlink()
    with pytest.raises(ValueError, match="template/own/retrosynthesis.json; download"):
        load_records(str(tmp_path / "unpacked"), "test")


def test_index_outside_the_raw_file(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "unpacked")
    raw = tmp_path / "unpacked" / "raw" / "test" / "retrosynthesis.jsonl"
    raw.write_text(raw.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="sample 0 of retrosynthesis .* line 2 of raw/test"):
        load_records(str(tmp_path / "unpacked"), "test", ["retrosynthesis"])


def test_malformed_raw_line(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "unpacked")
    raw = tmp_path / "unpacked" / "raw" / "test" / "retrosynthesis.jsonl"
    raw.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match="retrosynthesis.jsonl, line 2 is not valid JSON"):
        load_records(str(tmp_path / "unpacked"), "test", ["retrosynthesis"])
    raw.write_text("{}\n{}\n{}\n")
    with pytest.raises(ValueError, match="the field 'output' of retrosynthesis"):
        load_records(str(tmp_path / "unpacked"), "test", ["retrosynthesis"])


@pytest.mark.parametrize("named", ["../../outside", "/outside", "../t/../.."])
def test_a_listing_cannot_lead_out_of_the_archive(named: str, tmp_path: Path, archive: Path) -> None:
    """The wordings of another folder would become training records."""
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "unpacked")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "retrosynthesis.json").write_text('[{"input": "SECRET <INPUT>", "output": "<OUTPUT>"}]')
    listing = tmp_path / "unpacked" / "sample" / "instruction_tuning" / "test" / "retrosynthesis.json"
    listing.write_text(json.dumps({**json.loads(listing.read_text()), "template_name": named}))
    with pytest.raises(ValueError, match="names .*, which is no file in it; download"):
        load_records(str(tmp_path / "unpacked"), "test", ["retrosynthesis"])


@pytest.mark.parametrize("name", ["raw/test/retrosynthesis.jsonl", "template/own/retrosynthesis.json"])
def test_a_file_that_unpacks_without_end(
    name: str, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.files.LONGEST_LINE", 1000)
    monkeypatch.setattr("data.archive.LARGEST_JSON", 1000)
    with zipfile.ZipFile(archive) as handle:
        content = {n: handle.read(n) for n in handle.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        for other, text in content.items():
            handle.writestr(other, b"0" * 2000 if other == name else text)
    with pytest.raises(ValueError, match=r"1,000 characters or more"):
        load_records(str(archive), "test", ["retrosynthesis"])


def test_an_incomplete_download(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ValueError, match="is not a complete zip file"):
        load_records(str(archive), "test")

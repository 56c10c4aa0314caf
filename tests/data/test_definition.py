"""Tests of content hashes, the check of the embedded set, and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from data.definition import definition_sha256, verify_embedded
from data.records import canonical_line, embedded_folder, load_records
from data.tasks import EMBEDDED_TASKS, Record
from data.tokenizer import tiny_tokenizer_path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_folder(), tmp_path / "set"))


def test_hash_is_that_of_the_canonical_lines() -> None:
    rows = load_records("embedded", "test", ["retrosynthesis"])
    expected = hashlib.sha256("".join(map(canonical_line, rows)).encode()).hexdigest()
    assert definition_sha256("embedded", ["retrosynthesis"], "test", None) == expected


def test_hash_depends_on_every_argument_but_the_order_of_tasks() -> None:
    tasks = ["retrosynthesis", "forward_synthesis"]
    one = definition_sha256("embedded", tasks, "test", 4)
    assert one == definition_sha256("embedded", tasks[::-1], "test", 4)
    assert one == definition_sha256("embedded", ["chemical_reaction"], "test", 4)
    others = {
        definition_sha256("embedded", tasks[:1], "test", 4),
        definition_sha256("embedded", tasks, "dev", 4),
        definition_sha256("embedded", tasks, "test", 5),
    }
    assert len(others | {one}) == 4


def test_hash_does_not_depend_on_the_container(tmp_path: Path, sample_records: list[Record]) -> None:
    lines = [json.dumps(r) for r in sample_records]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "test.jsonl").write_text("\n".join(lines[::-1][::-1]) + "\n")
    assert definition_sha256(str(tmp_path / "one"), None, "test", None) == definition_sha256(
        "embedded", None, "test", 3
    )


def test_embedded_set_is_as_its_manifest_states() -> None:
    manifest = verify_embedded()
    assert manifest["settings"]["seed"] == 7
    assert set(manifest["packages"]) == {"rdkit", "chemicals", "datamol", "tokenizers"}
    assert list(manifest["tasks"]) == list(EMBEDDED_TASKS)
    for name, entry in manifest["tasks"].items():
        assert entry["records"] == {"train": 400, "dev": 40, "test": 40}
        assert entry["provenance"] == EMBEDDED_TASKS[name].provenance
    stated = manifest["files"]["test/retrosynthesis.jsonl.gz"]["records_sha256"]
    assert stated == definition_sha256("embedded", ["retrosynthesis"], "test", None)


def test_every_file_of_the_set_is_in_the_manifest() -> None:
    found = {str(p.relative_to(embedded_folder())) for p in embedded_folder().rglob("*") if p.is_file()}
    assert found - {"manifest.json", "README.md"} == set(verify_embedded()["files"])


def test_changed_file_is_named(copy: Path) -> None:
    path = copy / "test" / "retrosynthesis.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="retrosynthesis.jsonl.gz has changed.*build_chemistry"):
        verify_embedded(copy)


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer.json is missing"):
        verify_embedded(copy)


def test_manifest_with_wrong_records_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["test/retrosynthesis.jsonl.gz"]["records"] = 41
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="does not contain the records"):
        verify_embedded(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="missing or broken"):
        verify_embedded(copy)


def test_manifest_that_contradicts_itself_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tasks"]["retrosynthesis"]["records"]["test"] = 41
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="contradicts itself on retrosynthesis, test"):
        verify_embedded(copy)


def test_tokenizer_has_768_entries_and_loses_nothing() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_tokenizer_path()))
    assert tokenizer.get_vocab_size() == 768
    assert tokenizer.token_to_id("<pad>") == 0
    assert tokenizer.token_to_id("<eos>") == 1
    for text in (
        "Näme <SMILES> C[C@H](O)CC </SMILES>?\n",
        "日本 \t\x00 e",
        load_records("embedded", "test")[0]["input"],
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_is_short_on_test_questions() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_tokenizer_path()))
    rows = load_records("embedded", "test")
    lengths = [len(tokenizer.encode(r["input"] + r["output"]).ids) for r in rows]
    assert max(lengths) < 160
    assert 40 < sum(lengths) / len(lengths) < 65

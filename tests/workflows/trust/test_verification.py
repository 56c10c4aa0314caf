"""A run is verified byte by byte: every change is found and named; what a crash leaves is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from written_run import changed_bytes, covered_files, write_run

from workflows import verify
from workflows.records.journal import Journal
from workflows.trust.findings import Finding
from workflows.trust.verification import findings_of

CHANGES = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("verified") / "run", rounds=2, nbytes=200)


@pytest.fixture
def run_dir(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "moved")  # a copy of a run at another place is as good
    return tmp_path / "moved"


def altered(run_dir: Path, *heads: str) -> list[Finding]:
    return [finding for finding in findings_of(run_dir, heads) if not finding.remark]


def test_a_run_is_as_it_was_written(run_dir: Path) -> None:
    assert not list(findings_of(run_dir)) and len(covered_files(run_dir)) > 10


def test_every_changed_byte_is_found_and_its_file_is_named(run_dir: Path) -> None:
    for path, place in changed_bytes(run_dir, CHANGES, seed=1):
        found = altered(run_dir)
        assert any(path.name in finding.place for finding in found), (path, place)
    assert not altered(run_dir)


@pytest.mark.parametrize("name", ["metrics.csv", "campaign.yaml", "journal.jsonl"])
def test_the_bytes_at_the_ends_of_a_file_are_covered_too(run_dir: Path, name: str) -> None:
    path = run_dir / name
    content = path.read_bytes()
    for changed in (
        content[:-1] + b"x",
        content[:-1] + b"\r",
        b"\xff" + content[1:],
        content + b"{}\n",
        b"\n" + content,
    ):
        path.write_bytes(changed)
        assert any(name in finding.place for finding in altered(run_dir)), changed[-5:]


def test_the_finding_says_what_it_should_be(run_dir: Path) -> None:
    campaign, model = run_dir / "campaign.yaml", run_dir / "model" / "config.json"
    campaign.write_text(campaign.read_text().replace("rounds: 2", "rounds: 9"))
    model.write_text("{ }\n")
    update = next(path for path in (run_dir / "artifacts").iterdir())
    update.write_bytes(b"\0" + update.read_bytes()[1:])
    missing = next(path for path in (run_dir / "artifacts").iterdir() if path != update)
    missing.unlink()
    found = [str(finding) for finding in altered(run_dir)]
    assert "campaign.yaml line 3: is 'rounds: 9', the journal has 'rounds: 2'" in found
    assert any(text.startswith("model/config.json: altered: its content has the SHA-256") for text in found)
    assert any(text.startswith(f"artifacts/{update.name}: altered (") for text in found)
    assert any(text.startswith(f"artifacts/{missing.name}: missing (") for text in found)
    assert len(found) == 4


@pytest.mark.parametrize("kept", [1, 5, -1, -66, -67, -68])
def test_what_a_crash_leaves_of_a_line_is_a_remark_and_the_next_driver_goes_on(run_dir: Path, kept: int) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    whole = journal.path.read_bytes()
    journal.write("thing", number=1)
    line = journal.path.read_bytes()[len(whole) :]
    journal.close()
    journal.path.write_bytes(whole + line[:kept])
    assert not altered(run_dir) and any("interrupted write" in str(finding) for finding in findings_of(run_dir))
    again = Journal(journal.path)
    again.write("thing", number=2)
    again.close()
    assert not list(findings_of(run_dir))


def test_a_cut_end_is_found_by_a_head_that_somebody_has_noted(run_dir: Path) -> None:
    path = run_dir / "journal.jsonl"
    head = Journal(path).head
    assert not altered(run_dir, head, head[:16])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert not altered(run_dir)
    assert [f"does not contain the head {head[:16]}" in str(finding) for finding in altered(run_dir, head)] == [True]


def test_the_script_says_it_in_lines_and_exit_codes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(run_dir)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"{run_dir} is as it was written." and Journal(run_dir / "journal.jsonl").head in told[-2]
    (run_dir / "metrics.csv").write_text("round\n")
    assert verify.main([str(run_dir)]) == 1
    told = capsys.readouterr()
    assert "ALTERED  metrics.csv line 1: does not follow from the journal: 'round'" in told.out
    assert told.err == f"{run_dir} is not as it was written: 1 finding\n"
    assert verify.main([str(run_dir / "model")]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_a_journal_of_an_older_release_is_told(run_dir: Path) -> None:
    path = run_dir / "journal.jsonl"
    bare = [line.partition(',"chain"')[0] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{line}}}\n" for line in bare))
    assert any("lines have no link: altered, or of an older release" in str(finding) for finding in altered(run_dir))

"""Start, resume and check: what a refused run leaves on the disk, and the check of the embedded data."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from campaigns import run, write_campaign

from apps.base.errors import UserMistake
from workflows.checks import here
from workflows.checks.opening import check, resume, start
from workflows.records.campaign_code import campaign_code


def options(**given: Any) -> Namespace:
    plain: dict[str, Any] = {"campaign": None, "name": None, "resume": None, "sets": [], "sites": None, "admit": []}
    return Namespace(**plain | {"dry_run": False, "live": False} | given)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run whose driver was killed in the middle of a record."""
    monkeypatch.chdir(tmp_path)
    _, began = start(options(campaign=write_campaign(tmp_path)))
    began.close()
    with open(began.path / "journal.jsonl", "ab") as stream:
        stream.write(b'{"seq":2,"ti')
    return began.path


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sets": ["seed=9"]}, "seed: 3 -> 9"),
    ({"sets": ["sites.aurora.threads=0"]}, "sites.aurora: threads: "),
    ({"sets": ["sites.aurora.config=polaris"]}, "sites.aurora: polaris needs account"),
    ({"sets": ["rounds=5", "sites.aurora.storage_root=s", "sites.frontier.storage_root=s"]}, "needs its own storage"),
    ({"campaign": Path("nowhere.yaml")}, "there is no campaign file"),
    ({"admit": ["aurora"]}, "--admit aurora: write SITE:ROUND"),
    ({"admit": ["aurora:1"]}, "--admit aurora:1: no update that waits to be let in. There are: none"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_refused_resume_changes_nothing_on_disk(interrupted: Path, given: dict[str, Any], message: str) -> None:
    before = snapshot(interrupted)
    with pytest.raises(UserMistake, match=message):
        resume(options(resume=interrupted, **given))
    assert snapshot(interrupted) == before
    _, resumed = resume(options(resume=interrupted, sets=["rounds=5"]))  # the lock was released
    resumed.close()
    assert snapshot(interrupted) != before


def test_a_run_of_other_code_is_refused_in_one_line_and_stays_as_it_is(interrupted: Path) -> None:
    journal = interrupted / "journal.jsonl"
    environment = json.loads((interrupted / "environment.json").read_text())
    assert environment["campaign_code"] == campaign_code() != environment["code_version"]
    journal.write_bytes(journal.read_bytes().replace(campaign_code().encode(), b"0123456789abcdef"))
    before = snapshot(interrupted)
    ended = run(interrupted.parents[1], "--resume", interrupted)
    assert ended.returncode == 2 and ended.stdout == "" and len(ended.stderr.splitlines()) == 1
    for text in ("campaign code 0123456789abcdef, this is " + campaign_code(), "Check out that commit again"):
        assert text in ended.stderr
    assert snapshot(interrupted) == before


def test_a_refused_start_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = options(campaign=write_campaign(tmp_path), sets=["data.source=nowhere.zip"])
    with pytest.raises(UserMistake, match="nowhere.zip does not exist"):
        start(given)
    assert not (tmp_path / "runs").exists()


def test_changed_embedded_data_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed() -> None:
        raise ValueError("train/x.jsonl.gz has changed since it was built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(here, "verify_embedded", changed)
    given = options(campaign=write_campaign(tmp_path))
    assert check(given) == 0
    assert "not on this machine: data.source: train/x.jsonl.gz has changed" in capsys.readouterr().out
    with pytest.raises(UserMistake, match="has changed since it was built"):
        start(given)

"""Transfer studies on this machine: the trips, the command, interruptions."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import PROJECT, environment, journal, write_campaign
from patience import patience

from apps.artifacts.store import Artifact, artifact_path
from apps.base.errors import ArtifactError
from site_configs.local import site as local_site
from workflows.studies.transfers.carriers import FileTransfer, FolderCarrier, Stores
from workflows.studies.transfers.measure import measure_all, stores_in
from workflows.studies.transfers.models import file_bytes, model_of
from workflows.studies.transfers.points import RoundTrip, StudyFile, trips_of
from workflows.studies.transfers.rows import RETURN, SEND, TransferRow, read_rows
from workflows.transfer_study import main, parse, rows_text

SCRIPT = PROJECT / "workflows" / "transfer_study.py"
SMALL = "tiny=100_000,small=2_000_000"


def load(name: str = "small", parameters: int = 500_000) -> StudyFile:
    model = model_of(f"{name}={parameters}")
    return StudyFile(model, file_bytes(model, "bfloat16"))


def files_in(folder: Path, ending: str = "") -> list[Path]:
    return [path for path in folder.rglob(f"*{ending}") if path.is_file()]


def size_of(path: Path) -> int:
    """0 for a file that has got another name meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def silent(words: str, nbytes: int, total: int) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "study"


# --- trips ------------------------------------------------------------------------------------------------------


def test_a_copied_file_comes_back_whole_and_nothing_is_left(folder):
    site, told = local_site("aurora", folder), []
    stores = stores_in(folder)
    trips = trips_of([site], [load("tiny", 1000), load("small")], 2, ())
    found = list(
        measure_all(trips, {"aurora": FolderCarrier(site, stores)}, stores, "bfloat16", lambda *a: told.append(a))
    )
    assert [m.failure for m in found] == [""] * 4
    rows = [row for m in found for row in m.rows]
    assert [(r.model, r.direction, r.repeat) for r in rows] == [
        ("tiny", SEND, 1),
        ("tiny", RETURN, 1),
        ("tiny", SEND, 2),
        ("tiny", RETURN, 2),
        ("small", SEND, 1),
        ("small", RETURN, 1),
        ("small", SEND, 2),
        ("small", RETURN, 2),
    ]
    assert {(r.carrier, r.parameters, r.queued_s, r.faults) for r in rows} == {
        ("copy", 1000, 0.0, 0),
        ("copy", 500_000, 0.0, 0),
    }
    assert all(r.rate_mb_s == pytest.approx(r.nbytes / r.seconds / 1e6) and r.seconds > 0 for r in rows)
    assert files_in(folder) == []
    assert ("writing small", load().nbytes - 88, load().nbytes) in told  # all but the header


def test_the_bytes_really_move(folder):
    site, stores, seen = local_site("aurora", folder), stores_in(folder), []

    class Looking(FolderCarrier):
        def fetch(self, artifact, show):
            seen.append(artifact_path(self.there, artifact).stat().st_size)
            seen.append(artifact_path(self.there, artifact).stat().st_ino)
            seen.append(artifact_path(self.stores.sent, artifact).stat().st_ino)
            return super().fetch(artifact, show)

    list(measure_all([RoundTrip(site, load(), 1)], {"aurora": Looking(site, stores)}, stores, "bfloat16", silent))
    assert seen[0] == load().nbytes
    assert seen[1] != seen[2]


def test_a_shared_storage_is_linked_as_in_a_campaign(folder):
    site, stores, seen = replace(local_site("aurora", folder), carrier="shared"), stores_in(folder), []

    class Looking(FolderCarrier):
        def fetch(self, artifact, show):
            seen.extend(artifact_path(s, artifact).stat().st_ino for s in (self.there, self.stores.sent))
            return super().fetch(artifact, show)

    (found,) = measure_all([RoundTrip(site, load(), 1)], {"aurora": Looking(site, stores)}, stores, "bfloat16", silent)
    assert seen[0] == seen[1]
    assert [row.carrier for row in found.rows] == ["shared", "shared"]
    assert files_in(folder) == []


class Damaging:
    """A carrier that changes the last byte."""

    def __init__(self, stores: Stores) -> None:
        self.stores, self.cleared = stores, 0

    def clean_up(self) -> None: ...

    def send(self, _artifact: Artifact, _show) -> FileTransfer:
        return FileTransfer(1.0)

    def fetch(self, artifact: Artifact, _show) -> FileTransfer:
        content = bytearray(artifact_path(self.stores.sent, artifact).read_bytes())
        content[-1] ^= 1
        artifact_path(self.stores.returned, artifact).write_bytes(content)
        return FileTransfer(1.0)

    def clear(self, _artifact: Artifact) -> None:
        self.cleared += 1


def test_a_wrong_file_has_no_row_and_the_site_is_left_out(folder):
    stores = stores_in(folder)
    good, bad = local_site("aurora", folder), local_site("frontier", folder)
    damaging = Damaging(stores)
    trips = trips_of([bad, good], [load("tiny", 1000), load("small")], 2, ())
    ways = {"aurora": FolderCarrier(good, stores), "frontier": damaging}
    found = list(measure_all(trips, ways, stores, "bfloat16", silent))
    assert [(m.trip.site.name, bool(m.rows)) for m in found] == [("frontier", False), *[("aurora", True)] * 4]
    assert "content does not match its SHA-256" in found[0].failure
    assert damaging.cleared == 1
    assert files_in(folder) == []


def test_a_site_that_cannot_be_cleared_is_reported(folder):
    stores = stores_in(folder)

    class Stuck(Damaging):
        def fetch(self, artifact, _show):
            artifact_path(self.stores.sent, artifact).rename(artifact_path(self.stores.returned, artifact))
            return FileTransfer(1.0)

        def clear(self, _artifact):
            raise ArtifactError("cannot be deleted")

    trips = trips_of([local_site("aurora", folder)], [load()], 3, ())
    (found,) = measure_all(trips, {"aurora": Stuck(stores)}, stores, "bfloat16", silent)
    assert len(found.rows) == 2  # what was measured counts
    assert found.failure == "not deleted there: cannot be deleted"


def test_an_interruption_leaves_no_file(folder):
    site, stores = local_site("aurora", folder), stores_in(folder)

    class Interrupted(FolderCarrier):
        def fetch(self, _artifact, _show):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(
            measure_all([RoundTrip(site, load(), 1)], {"aurora": Interrupted(site, stores)}, stores, "bfloat16", silent)
        )
    assert files_in(folder) == []


def test_what_a_killed_study_left_is_put_away(folder):
    site, stores = local_site("aurora", folder), stores_in(folder)
    left = [stores.sent / "a", stores.returned / "b", site.incoming / "transfer_study" / ".part-c"]
    own = site.incoming / "of-a-campaign"
    for path in (*left, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    way = FolderCarrier(site, stores)
    way.clean_up()
    list(measure_all([], {"aurora": way}, stores, "bfloat16", silent))
    assert files_in(folder) == [own]


def test_a_trip_in_words():
    row = TransferRow("polaris", "globus", SEND, "opt-125m", 125_239_296, 250_501_136, 2.5, 61.0, 100.2, 2, 1)
    there, back = rows_text([row, replace(row, direction=RETURN, queued_s=0.3, faults=0)]).split("; ")
    assert there == "to the site 2.5 s, 100 MB/s, after 61 s in the queue, 2 faults"
    assert back == "back 2.5 s, 100 MB/s"
    assert rows_text([replace(row, seconds=0.0, rate_mb_s=math.nan, queued_s=0.0, faults=1)]) == (
        "to the site 0 s, too short to measure, 1 fault"
    )


# --- the command ------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=patience(240), check=False
    )


def test_help_needs_none_of_the_heavy_libraries():
    code = (
        "import sys\nfrom workflows.transfer_study import parse\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'parsl', 'rich', 'pydantic', 'globus_sdk'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert asked.returncode == 0, asked.stderr
    assert "NAME=PARAMETERS" in asked.stdout


def test_options_are_checked():
    made = parse([])
    assert (made.repeat, made.dtype, made.budget_gb) == (3, "bfloat16", 20.0)
    assert made.models == ("opt-125m", "opt-350m", "opt-1.3b", "llama-2-7b", "llama-2-13b")
    for wrong in (["--budget-gb", "0"], ["--budget-gb", "nan"], ["--repeat", "0"], ["--dtype", "int4"]):
        with pytest.raises(SystemExit):
            parse(wrong)


def test_a_dry_run_shows_what_would_move_and_moves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(write_campaign(tmp_path)), "--models", SMALL, "--sites", "aurora", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "aurora: 25.2 MB in 6 trips there and back, copied, at most 4 MB at a time in" in told
    assert not (tmp_path / "runs").exists()


def test_too_much_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(write_campaign(tmp_path)), "--models", "llama-2-7b"]) == 2
    told = capsys.readouterr()
    assert "aurora: 80.9 GB in 3 trips" in told.out and "frontier: 80.9 GB in 3 trips" in told.out
    assert "162 GB would move in all, more than the 20 GB of --budget-gb; nothing has moved" in told.err
    assert "--budget-gb 162" in told.err
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(write_campaign(tmp_path))
    far = [f"sites.aurora.{key}" for key in ("carrier=globus", f"collection={'0' * 8}-0000-0000-0000-{'0' * 12}")]
    far.append(f"sites.aurora.collection_folder={tmp_path}/shown")
    for wrong in (
        [str(tmp_path / "none.yaml")],
        [path, "--models", "a=5,a=6"],
        [path, "--models", ","],
        [path, "--models", "gpt-5"],
        [path, *(word for text in far for word in ("--set", text))],
    ):
        assert main(wrong) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 5
    assert "there is no campaign file" in told[0]
    assert "a is given twice" in told[1]
    assert "name at least one" in told[2]
    assert "unknown model 'gpt-5'" in told[3]
    assert "globus.collection" in told[4]


def test_a_study_from_end_to_end_moves_each_file_once(tmp_path):
    path = write_campaign(tmp_path)
    asked = (path, "--models", SMALL, "--repeat", 2, "--out", "out")
    first = run(tmp_path, *asked)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "out"
    rows = read_rows(folder / "transfers.csv")
    assert len(rows) == 2 * 2 * 2 * 2
    assert {(r.site, r.carrier, r.model) for r in rows} == {
        (s, "copy", m) for s in ("aurora", "frontier") for m in ("tiny", "small")
    }
    assert files_in(folder, ".safetensors") == []
    pictures = ("sizes.png", "speed.png", "mean_speed.png", "savings.png")
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "aurora, tiny (200 kB), trip 1: to the site" in first.stdout
    assert "fitted: seconds = t0 + bytes / B" in first.stdout and "int8" in first.stdout
    (folder / "speed.png").unlink()
    again = run(tmp_path, *asked)
    assert "8 of 8 trips are in out/transfers.csv already" in again.stdout
    assert read_rows(folder / "transfers.csv") == rows and (folder / "speed.png").exists()
    more = run(tmp_path, path, "--models", SMALL, "--repeat", 3, "--out", "out", "--sites", "aurora")
    assert "4 of 6 trips are in" in more.stdout
    assert read_rows(folder / "transfers.csv")[: len(rows)] == rows
    assert len(read_rows(folder / "transfers.csv")) == len(rows) + 4


def test_rows_of_another_place_do_not_mix(tmp_path):
    path = write_campaign(tmp_path)
    asked = (path, "--models", "tiny=1000", "--repeat", 1, "--sites", "aurora", "--out", "out")
    assert run(tmp_path, *asked).returncode == 0
    moved = run(tmp_path, *asked[:4], 2, *asked[5:], "--set", f"sites.aurora.storage_root={tmp_path}/elsewhere")
    assert moved.returncode == 2
    assert "has site aurora with storage_root:" in moved.stderr and "Choose another --out" in moved.stderr
    assert len(read_rows(tmp_path / "out" / "transfers.csv")) == 2
    assert [set(r["sites"]) for r in journal(tmp_path / "out", "study_sites")] == [{"aurora"}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path, number):
    path = write_campaign(tmp_path)
    asked = (path, "--models", "tiny=1000,large=60_000_000", "--repeat", 2, "--sites", "aurora", "--out", "out")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, asked)],
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    study, limit = tmp_path / "out" / "sites" / "aurora" / "in" / "transfer_study", time.monotonic() + patience(120)
    while not (study.is_dir() and any(size_of(path) > 1_000_000 for path in study.iterdir())):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    os.kill(process.pid, number)
    told = process.communicate(timeout=patience(60))
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), told
    assert bool(files_in(tmp_path / "out", ".safetensors")) == (number == signal.SIGKILL)
    kept = read_rows(tmp_path / "out" / "transfers.csv")
    assert [row.model for row in kept[:4]] == ["tiny"] * 4
    again = run(tmp_path, *asked)
    assert again.returncode == 0, again.stderr
    rows = read_rows(tmp_path / "out" / "transfers.csv")
    assert rows[: len(kept)] == kept and len({row.key for row in rows}) == len(rows) == 8
    assert files_in(tmp_path / "out", ".safetensors") == files_in(tmp_path / "out", "part-*") == []

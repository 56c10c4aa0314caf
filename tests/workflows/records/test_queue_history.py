"""The queue history: rows are read as written, also with several drivers, and torn rows never count."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import environment
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import StorageError
from workflows.records.queue_history import (
    COLUMNS,
    BlockRecord,
    append,
    as_line,
    history_path,
    machine_of,
    read_history,
)

JOB = BlockRecord(
    "polaris", "alcf", "demo", "pbs", "debug", "12.pbs-01", 2, 3600, 1_780_000_000.25, 1_780_000_300.0, None, "R"
)
TIMES = st.none() | st.floats(0, 4e9)
RECORDS = st.builds(
    BlockRecord,
    **dict.fromkeys(("machine", "site", "campaign", "scheduler", "queue", "job_id", "state"), st.text(max_size=8)),
    nodes=st.integers(0, 10**6),
    walltime_s=st.integers(0, 10**7),
    submitted=TIMES,
    started=TIMES,
    ended=TIMES,
)


def one_line(record: BlockRecord) -> BlockRecord:
    """Return the record as it is read: runs of white space in its texts are one space."""
    texts = {name: " ".join(v.split()) for name, v in vars(record).items() if isinstance(v, str)}
    return dataclasses.replace(record, **texts)


@pytest.mark.parametrize(
    ("site", "config", "machine"),
    [
        ("alcf", "polaris", "polaris"),
        ("mine", "slurm", "mine"),
        ("mine", "pbs", "mine"),
        ("mine", "my/polaris.py", "mine"),
    ],
)
def test_a_machine_has_one_name_over_campaigns(site: str, config: str, machine: str) -> None:
    assert machine_of(site, config) == machine


def test_the_path_of_the_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CROSSFED_HISTORY", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert history_path() == Path("/home/ada/.local/share/crossfed/queue_history.csv")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert history_path() == tmp_path / "crossfed" / "queue_history.csv"
    monkeypatch.setenv("CROSSFED_HISTORY", "~/waits.csv")
    assert history_path() == Path("/home/ada/waits.csv")
    monkeypatch.setenv("CROSSFED_HISTORY", "")
    assert history_path() == tmp_path / "crossfed" / "queue_history.csv"


def test_the_folder_the_header_and_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "h.csv"
    assert append(JOB, path)
    assert append(dataclasses.replace(JOB, job_id="13.pbs-01", started=None), path)
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(f'"{name}"' for name in COLUMNS)
    assert lines[1] == ('"polaris","alcf","demo","pbs","debug","12.pbs-01",2,3600,1780000000.25,1780000300.0,"","R"')
    assert len(lines) == 3 and list(path.parent.iterdir()) == [path]
    assert read_history(path) == [JOB, dataclasses.replace(JOB, job_id="13.pbs-01", started=None)]


def test_the_default_file_is_used_without_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CROSSFED_HISTORY", str(tmp_path / "h.csv"))
    assert read_history() == []
    append(JOB)
    assert read_history() == [JOB]


@given(records=st.lists(RECORDS, max_size=4))
def test_every_record_comes_back(tmp_path_factory: pytest.TempPathFactory, records: list[BlockRecord]) -> None:
    path = tmp_path_factory.mktemp("back") / "h.csv"
    written = [dataclasses.replace(record, job_id=str(number)) for number, record in enumerate(records)]
    assert all(append(record, path) for record in written)
    assert read_history(path) == [one_line(record) for record in written]


@given(cut=st.integers(0, 120), repaired=st.booleans())
def test_a_row_cut_off_anywhere_never_counts(
    tmp_path_factory: pytest.TempPathFactory, cut: int, repaired: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "h.csv"
    append(JOB, path)
    torn = as_line(dataclasses.replace(JOB, job_id="99", state="FINISHED"))
    torn = torn[: min(cut, len(torn) - 2)]  # without its last quote
    with open(path, "a") as stream:
        stream.write(torn)
    after = dataclasses.replace(JOB, job_id="100")
    if repaired:
        append(after, path)
    assert read_history(path) == ([JOB, after] if repaired else [JOB])


def test_a_damaged_line_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "h.csv"
    append(JOB, path)
    lines = ["rubbish", as_line(JOB).replace("3600", "soon").strip(), ",".join(['"x"'] * 14), '"a', ""]
    with open(path, "a") as stream:
        stream.write("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        assert read_history(path) == [JOB]
    assert [f"line {n} is not a job" in m for n, m in zip((3, 4, 5, 6), caplog.messages, strict=True)] == [True] * 4


def test_a_job_with_two_rows_counts_once_and_the_last_row_holds(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    ended = dataclasses.replace(JOB, ended=1_780_003_000.0, state="F")
    other_machine = dataclasses.replace(JOB, machine="aurora")
    nameless = dataclasses.replace(JOB, job_id="")
    for record in (JOB, other_machine, nameless, nameless, ended):
        append(record, path)
    assert read_history(path) == [ended, other_machine, nameless, nameless]


def test_a_history_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert not append(JOB, tmp_path / "file" / "h.csv")
    assert not append(JOB, tmp_path)
    assert len(caplog.messages) == 2
    assert "job 12.pbs-01 is missing in the queue history" in caplog.text and str(tmp_path / "file") in caplog.text


def test_a_history_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read the queue history: Is a directory"):
        read_history(tmp_path)


FULL_DISK = """
import dataclasses, resource, signal, sys
from pathlib import Path
from test_rows import JOB
from workflows.records.queue_history import append
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
print(sum(append(dataclasses.replace(JOB, job_id=str(n)), Path(sys.argv[1])) for n in range(20)))
"""


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    code = code.replace(
        "from test_rows import JOB", f"from workflows.records.queue_history import BlockRecord\nJOB = {JOB!r}"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_on_a_full_disk_every_row_reported_as_written_is_there(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    out, err = run_python(FULL_DISK, str(path)).communicate()
    written = int(out)
    assert 0 < written < 20 and path.stat().st_size <= 600
    assert [record.job_id for record in read_history(path)] == [str(n) for n in range(written)]
    assert "is missing in the queue history" in err


DRIVER = """
import dataclasses, sys
from pathlib import Path
from test_rows import JOB
from workflows.records.queue_history import append
for number in range(60):
    assert append(dataclasses.replace(JOB, site=sys.argv[2] * 40, job_id=f"{sys.argv[2]}-{number}"), Path(sys.argv[1]))
"""


def test_several_drivers_at_once_write_one_header_and_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    drivers = [run_python(DRIVER, str(path), name) for name in "abcd"]
    assert [(d.communicate()[1], d.returncode) for d in drivers] == [("", 0)] * 4
    assert path.read_text().count('"machine"') == 1
    found = read_history(path)
    assert {r.job_id for r in found} == {f"{name}-{n}" for name in "abcd" for n in range(60)}
    assert all(r.site == r.job_id[0] * 40 for r in found)

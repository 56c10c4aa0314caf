"""Queue records from every source: the history, Slurm's sacct, PBS accounting, traces in SWF."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.base.errors import CrossfedError, UserMistake
from workflows.records.queue_history import BlockRecord, append
from workflows.studies.queues.logs import clock_s, read_pbs, read_sacct
from workflows.studies.queues.sources import read_file, read_sources
from workflows.studies.queues.swf import read_swf
from workflows.studies.queues.waits import (
    INCOMPLETE,
    NEVER_STARTED,
    RESTARTED,
    UNREADABLE,
    Reading,
    Wait,
    as_table,
    select,
)

# as Slurm 22.05 printed it on a test cluster, but for the last four lines
SACCT = """\
JobIDRaw|Cluster|Partition|QOS|NNodes|TimelimitRaw|Submit|Eligible|Start|End|State
1|alpha|debug|normal|1|5|2026-11-22T17:59:39|2026-11-22T17:59:39|2026-11-22T17:59:40|2026-11-22T17:59:41|COMPLETED
3|alpha|regular|normal|2|30|2026-11-22T17:59:39|2026-11-22T17:59:39|2026-11-22T17:59:50|2026-11-22T17:59:51|COMPLETED
3.batch|alpha|||1||2026-11-22T17:59:50|2026-11-22T17:59:50|2026-11-22T17:59:50|2026-11-22T17:59:51|COMPLETED
4|alpha|debug|short|1|5|2026-11-22T17:59:39|2026-11-22T17:59:39|2026-11-22T17:59:40|2026-11-22T17:59:40|COMPLETED
5|alpha|debug|normal|1|5|2026-11-22T17:59:39|2026-11-22T17:59:54|2026-11-22T17:59:57|2026-11-22T17:59:58|COMPLETED
6|alpha|debug|normal|1|5|2026-11-22T17:59:39|Unknown|None|2026-11-22T17:59:58|CANCELLED by 0
7|alpha|debug|normal|1|5|2026-11-22T17:59:39|2026-11-22T17:59:39|2026-11-22T18:00:00|2026-11-22T18:00:00|CANCELLED by 0
8|alpha|debug|normal|1|UNLIMITED|2026-11-22T17:59:39|2026-11-22T17:59:39|Unknown|Unknown|PENDING
9|alpha|cut o
"""
PBS = """\
03/14/2026 10:00:00;Q;7.pbs-01.site;queue=small
03/14/2026 11:00:00;S;7.pbs-01.site;user=ada queue=small qtime=1773480000 start=1773483600
03/14/2026 12:00:00;E;7.pbs-01.site;user=ada group=g project=p jobname=a queue=small ctime=1773480000 qtime=1773480000 \
etime=1773480000 start=1773483600 exec_host=x/0*64+y/0*64 Resource_List.nodect=12 Resource_List.place=scatter \
Resource_List.select=12:ncpus=64 Resource_List.walltime=02:30:00 session=1 end=1773487200 Exit_status=0 run_count=1
03/14/2026 12:00:01;E;8.pbs-01.site;jobname=held queue=debug qtime=1773480000 etime=1773481000 start=1773481060 \
Resource_List.nodect=1 Resource_List.walltime=00:05:00 end=1773481100 run_count=1
03/14/2026 12:00:02;E;9.pbs-01.site;queue=preemptable qtime=1773480000 start=1773481060 run_count=2
03/14/2026 12:00:03;E;10.pbs-01.site;queue=debug qtime=1773480000 Resource_List.nodect=1 end=1773481100
03/14/2026 12:00:04;E;11.pbs-01.site;queue=debug qtime=1773480000 start=1773481060 end=1773481100
rubbish
"""
SWF = """\
; Computer: Testy
; UnixStartTime: 1000000
; MaxNodes: 10 (of two kinds)
; MaxProcs: 24
; Queue: 1 express
; Queue: 2 - long
1 10 5 100 24 -1 -1 24 600 -1 1 -1 -1 -1 1 -1 -1 -1
2 20 0 100 5 -1 -1 -1 -1 -1 0 -1 -1 -1 2 -1 -1 -1
3 30 60 -1 -1 -1 -1 4 600 -1 5 -1 -1 -1 1 -1 -1 -1
4 40 60 9 4 -1 -1 4 600 -1 5 -1 -1 -1 7 -1 -1 -1
5 50 -1 9 4 -1 -1 4 600 -1 1 -1 -1 -1 1 -1 -1 -1
6 60 7 9 4 -1 -1 4 600 -1 2 -1 -1 -1 1 -1 -1 -1
7 70.5 7 9 4 -1 -1 4 600 -1 1 -1 -1 -1 -1 -1 -1 -1
8 80 7 9
"""
THETA = Path(__file__).resolve().parents[5] / "shared" / "queue_traces" / "theta_2022.swf.gz"


def rows(reading: Reading) -> list[Wait]:
    return [
        Wait(**{**row, "walltime_s": None if row["walltime_s"] != row["walltime_s"] else row["walltime_s"]})
        for row in reading.waits.to_dict("records")
    ]


def local(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_sacct_gives_partition_qos_and_waits_from_when_a_job_could_run() -> None:
    reading = read_sacct("saved", SACCT.splitlines())
    submitted, released = local("2026-11-22T17:59:39"), local("2026-11-22T17:59:54")
    assert rows(reading) == [
        Wait("alpha", "debug", 1, 300.0, 1.0, submitted),
        Wait("alpha", "regular", 2, 1800.0, 11.0, submitted),
        Wait("alpha", "debug/short", 1, 300.0, 1.0, submitted),
        Wait("alpha", "debug", 1, 300.0, 3.0, released),
    ]
    assert reading.left_out == {NEVER_STARTED: 3, UNREADABLE: 1}


def test_sacct_in_other_columns_with_unix_seconds_and_a_time_limit_in_words() -> None:
    lines = ["JobID|Partition|AllocNodes|ReqNodes|Timelimit|Submit|Start", "5|batch|0|3|1-02:00:00|1000|1060"]
    assert rows(read_sacct("saved", lines)) == [Wait("saved", "batch", 3, 93600.0, 60.0, 1000.0)]
    lines[1] = "5|batch|4|3|Partition_Limit|1000|1060"
    assert rows(read_sacct("saved", lines)) == [Wait("saved", "batch", 4, None, 60.0, 1000.0)]


def test_sacct_without_a_required_column_names_the_command() -> None:
    with pytest.raises(UserMistake, match=r"saved: no column Start\. Make it with: sacct -P -X --format=JobIDRaw"):
        read_sacct("saved", ["JobID|Partition|NNodes|Submit"])


@pytest.fixture
def sacct_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a command of that name alone on PATH; it records its arguments."""
    script = tmp_path / "bin" / "sacct"
    script.parent.mkdir()
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HERE", str(tmp_path))
    return script


def test_sacct_is_asked_for_unix_seconds_since_the_date(sacct_script: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("JobIDRaw|Partition|NNodes|Submit|Start\n1|debug|2|1000|1030\n")
    sacct_script.write_text('#!/bin/sh\necho "$SLURM_TIME_FORMAT $*" > $HERE/asked\ncat $HERE/out\n')
    sacct_script.chmod(0o755)
    [reading] = read_sources(["sacct"], since=local("2026-08-01"))
    assert rows(reading) == [Wait("sacct", "debug", 2, None, 30.0, 1000.0)]
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("%s --parsable2 --allocations") and "--starttime=2026-08-01T00:00:00" in asked


def test_sacct_that_fails_or_is_not_there(sacct_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sacct_script.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    sacct_script.chmod(0o755)
    with pytest.raises(CrossfedError, match="sacct failed: Slurm accounting storage is disabled"):
        read_sources(["sacct"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserMistake, match=r"sacct is not available on this machine\. Save the output of"):
        read_sources(["sacct"])


def test_pbs_counts_ended_jobs_from_when_they_could_run() -> None:
    reading = read_pbs("20260314", PBS.splitlines())
    assert rows(reading) == [
        Wait("pbs-01", "small", 12, 9000.0, 3600.0, 1773480000.0),
        Wait("pbs-01", "debug", 1, 300.0, 60.0, 1773481000.0),
    ]
    assert reading.left_out == {RESTARTED: 1, NEVER_STARTED: 1, INCOMPLETE: 1, UNREADABLE: 1}
    assert "those that still wait are missing" in reading.remarks[0]


def test_swf_counts_nodes_by_the_processors_of_one() -> None:
    reading = read_swf("trace", SWF)
    assert rows(reading) == [
        Wait("Testy", "express", 10, 600.0, 5.0, 1000010.0),
        Wait("Testy", "long", 3, None, 0.0, 1000020.0),
        Wait("Testy", "queue 7", 2, 600.0, 60.0, 1000040.0),
        Wait("Testy", "all", 2, 600.0, 7.0, 1000070.5),
    ]
    assert reading.left_out == {UNREADABLE: 1, NEVER_STARTED: 1, INCOMPLETE: 1} and not reading.remarks
    assert list(read_swf("trace", SWF, processors_per_node=4).waits["nodes"]) == [6, 2, 1, 1]


def test_swf_without_its_header_says_that_a_processor_counts_as_a_node() -> None:
    reading = read_swf("trace", SWF.replace("MaxNodes", "Nodes"))
    assert list(reading.waits["nodes"]) == [24, 5, 4, 4]
    assert "a processor counts as a node" in reading.remarks[0]


@pytest.mark.parametrize("text", ["; Version: 2\n1 2 3\n", "; Version: 2\n" + "1 " * 30 + "\n"])
def test_another_format_is_refused(text: str) -> None:
    with pytest.raises(UserMistake, match="trace is not a trace in the Standard Workload Format"):
        read_swf("trace", text)
    with pytest.raises(UserMistake, match="Expected 18 fields"):
        read_swf("trace", SWF + "1 " * 30 + "\n")


@pytest.mark.skipif(not THETA.exists(), reason="the trace of Theta is not here")
def test_the_trace_of_theta_has_its_published_waits() -> None:
    reading = read_file(THETA)
    hours = reading.waits["wait_s"] / 3600
    assert len(hours) == 23_911 and not reading.left_out
    assert [round(hours.median(), 1), round(hours.mean()), round(hours.quantile(0.9))] == [7.2, 25, 60]
    cell = reading.waits.query("nodes < 129 and walltime_s <= 3600")["wait_s"]
    assert (len(cell), cell.median()) == (5736, 5208.0)


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    job = BlockRecord("m", "s", "c", "pbs", "debug", "1", 2, 600, 1000.0, 1060.0, None, "R")
    append(job, tmp_path / "h.csv")
    for name, text in (("20260314", PBS), ("saved.txt", SACCT), ("t.swf", SWF)):
        (tmp_path / name).write_text(text)
    (tmp_path / "t.swf.gz").write_bytes(gzip.compress(SWF.encode()))
    found = read_sources([str(tmp_path / name) for name in ("h.csv", "20260314", "saved.txt", "t.swf", "t.swf.gz")])
    assert [len(reading.waits) for reading in found] == [1, 2, 4, 4, 4]
    assert [reading.name for reading in found[1:]] == ["20260314", "saved.txt", "t", "t"]
    assert rows(found[0]) == [Wait("m", "debug", 2, 600.0, 60.0, 1000.0)]


def test_files_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear Ada\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(SWF.encode())[:-30])
    with pytest.raises(UserMistake, match="letter is not a queue history, output of sacct"):
        read_file(tmp_path / "letter")
    with pytest.raises(UserMistake, match=r"cannot read .*cut\.gz"):
        read_file(tmp_path / "cut.gz")
    with pytest.raises(UserMistake, match="there is no file nowhere; sources are history, sacct, or a FILE"):
        read_file(Path("nowhere"))


def test_the_history_counts_jobs_that_never_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CROSSFED_HISTORY", str(tmp_path / "h.csv"))
    append(BlockRecord("m", "s", "c", "pbs", "debug", "1", 2, 600, 1000.0, None, 1500.0, "CANCELLED"))
    append(BlockRecord("m", "s", "c", "pbs", "debug", "2", 2, 600, None, 1400.0, 1500.0, "F"))
    append(BlockRecord("m", "s", "c", "pbs", "debug", "3", 2, 600, 1000.5, 1000.0, 1500.0, "F"))
    [reading] = read_sources(["history"])
    assert reading.left_out == {NEVER_STARTED: 1, INCOMPLETE: 1}
    assert rows(reading) == [Wait("m", "debug", 2, 600.0, 0.0, 1000.5)]


def test_select_by_queue_and_date() -> None:
    reading = Reading(
        "r", as_table([Wait("m", queue, 1, None, 5.0, when) for queue, when in zip("aab", (1, 2, 3), strict=True)])
    )
    assert list(select([reading], ["a"])["submitted"]) == [1, 2]
    assert list(select([reading], since=2, until=3)["submitted"]) == [2]
    with pytest.raises(UserMistake, match="--queue c: no job of this queue; queues with jobs: a, b"):
        select([reading], ["c"])
    with pytest.raises(UserMistake, match="no job that has started between these dates in r"):
        select([reading], since=9)
    with pytest.raises(UserMistake, match="no job that has started in e"):
        select([Reading("e", as_table([]))])


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_clocks_of_schedulers(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = 86400.0 * days + 3600 * hours + 60 * minutes + seconds
    assert clock_s(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == total
    assert clock_s(f"{24 * days + hours}:{minutes:02d}:{seconds:02d}") == total
    assert clock_s(f"{days}-{hours}") == 86400.0 * days + 3600 * hours
    assert clock_s(f"{minutes}:{seconds:02d}") == 60 * minutes + seconds
    assert clock_s("UNLIMITED") is None and clock_s("") is None

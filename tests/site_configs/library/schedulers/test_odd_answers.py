"""Tests of what real schedulers print at times: jobs that cannot be read, banners, errors with the exit code 0.

Sources: invalid JSON of jobs submitted with ``qsub -V`` (reports of OpenPBS 19.1 and 20), only the first of several
jobs in JSON (OpenPBS issue 2672), folded text (``prt_attr`` in OpenPBS' qstat.c), ``9K`` for 9216 nodes
(``convert_num_unit`` of Slurm), variables of squeue, scancel and qsub (their manual pages).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from patience import patience, wait_until

from site_configs.library.schedulers import GONE, UNKNOWN, JobFacts
from site_configs.library.schedulers.commands import ask, run_bounded
from site_configs.library.schedulers.pbs import Pbs
from site_configs.library.schedulers.pbs_records import job_ids, read_records
from site_configs.library.schedulers.slurm import Slurm
from site_configs.library.schedulers.slurm_rows import count, queue_rows

TOKEN = "cf-0123456789"
OURS_TEXT = f"""\
Job Id: 101.srv
    Job_Name = {TOKEN}-ab
    Job_Owner = me@login1
    job_state = Q
    queue = workq
    ctime = Sat Nov 28 17:00:00 2026
    Resource_List.nodect = 2
    Resource_List.walltime = 00:10:00
    Variable_List = PBS_O_HOME=/home/me,PBS_O_PATH=/usr/bin:/a/rather/long/path/that/
\tis/folded:/bin,
\tPBS_O_SHELL=/bin/bash
    comment = Not Running: would exceed queue workq's per-user limit and this is fo
\tlded
    estimated.start_time = Sat Nov 28 19:00:00 2026

"""
OURS_JSON = f"""\
{{"timestamp":1,"pbs_server":"srv","Jobs":{{"101.srv":{{"Job_Name":"{TOKEN}-ab","job_state":"Q","queue":"workq",
"ctime":"Sat Nov 28 17:00:00 2026","Resource_List":{{"nodect":2,"walltime":"00:10:00"}}}}}}}}
"""
FOREIGN_TEXT = """\
Job Id: 99.srv
    Job_Name = STDIN
    Job_Owner = me@login1
    job_state = R
    queue = workq
    Variable_List = PBS_O_HOME=/home/me,BASH_FUNC_module()=() {  eval `modulecmd bash "$@"`
}

"""
INVALID = {
    "function": '"BASH_FUNC_module()":"() {  eval `/usr/bin/modulecmd bash "$@"`\n}"',
    "leading zeros": '"RUN_NUMBER":005',
    "quotes": '"PS1":"say "hello" to"',
    "control characters": '"PS1":"\x1b[01;32m\x07\x00"',
    "backslash": '"IFS":"\\q \\"',
    "nested": '"CONFIG":{"a": {"b": }',
}


def foreign_json(variable: str, state: str = "R", name: str = "STDIN", job_id: str = "99.srv") -> str:
    return (
        f'{{\n    "timestamp":1656686587,\n    "Jobs":{{\n        "{job_id}":{{\n            "Job_Name":"{name}",\n'
        f'            "Job_Owner":"me@login1",\n            "job_state":"{state}",\n            "queue":"workq",\n'
        '            "Resource_List":{"nodect":1,"walltime":"01:00:00"},\n'
        f'            "Variable_List":{{\n                "PBS_O_HOME":"/home/me",\n                {variable}\n'
        "            }\n        }\n    }\n}\n"
    )


QSTAT = """\
#!/bin/bash
echo "$*" >> {folder}/calls
form=text; ids=()
for word in "$@"; do
    [ "$word" = json ] && form=json
    [[ $word =~ ^[0-9] ]] && ids+=("$word")
done
[ $form = json ] && ids=("${{ids[0]}}")  # OpenPBS issue 2672
code=0
for id in "${{ids[@]}}"; do
    if [ -e {folder}/$id.$form ]; then cat {folder}/$id.$form
    elif [ ! -e {folder}/$id.json ] && [ ! -e {folder}/$id.text ]; then echo "qstat: Unknown Job Id $id" >&2; code=153
    fi
done
exit $code
"""
Server = Callable[..., Pbs]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Return a function that makes a PBS server: ``qselect`` and the jobs by id, each as (text, JSON)."""

    def make(listed: str, **jobs: tuple[str | None, str | None]) -> Pbs:
        (tmp_path / "listed").write_text(listed)
        programs = {"qselect": f"#!/bin/sh\ncat {tmp_path}/listed\n", "qstat": QSTAT.format(folder=tmp_path)}
        for name, script in programs.items():
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        for number, forms in jobs.items():
            for form, content in zip(("text", "json"), forms, strict=True):
                if content is not None:
                    (tmp_path / f"{number.removeprefix('job')}.srv.{form}").write_bytes(content.encode("latin-1"))
        return Pbs({"PATH": f"{tmp_path}:{os.environ['PATH']}"})

    return make


def found(pbs: Pbs) -> list[tuple[str, str]] | None:
    jobs = pbs.find(TOKEN)
    return None if jobs is None else [(job.job_id, job.state) for job in jobs]


def test_all_jobs_of_the_user_are_described_by_one_call(server: Server, tmp_path: Path) -> None:
    others = [f"{number}.srv" for number in range(200, 260)]
    texts = {f"job{n.split('.')[0]}": (FOREIGN_TEXT.replace("99.srv", n), None) for n in others}
    pbs = server("\n".join(["101.srv", *others]), job101=(OURS_TEXT, OURS_JSON), **texts)
    assert found(pbs) == [("101.srv", "pending")]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    (job,) = pbs.find(TOKEN) or ()
    assert (job.nodes, job.walltime_s, job.queue) == (2, 600, "workq")
    assert job.reason == "Not Running: would exceed queue workq's per-user limit and this is folded"
    assert job.expected_start == time.mktime((2026, 11, 28, 19, 0, 0, 0, 0, -1)) and job.started is None


@pytest.mark.parametrize("variable", INVALID.values(), ids=INVALID)
def test_a_job_with_invalid_json_does_not_hide_ours(server: Server, variable: str) -> None:
    """A PBS whose text form does not work either, so that each job is asked for alone."""
    pbs = server("99.srv\n101.srv\n", job99=(None, foreign_json(variable)), job101=(None, OURS_JSON))
    assert found(pbs) == [("101.srv", "pending")]
    assert [job.job_id for job in pbs.mine("workq") or ()] == ["99.srv", "101.srv"]


@pytest.mark.parametrize("variable", INVALID.values(), ids=INVALID)
def test_our_own_job_with_invalid_json_is_read(server: Server, variable: str) -> None:
    """A server may have ``default_qsub_arguments = -V``."""
    ours = foreign_json(variable, name=f"{TOKEN}-ab", job_id="101.srv")
    pbs = server("101.srv\n", job101=(None, ours))
    facts = pbs.jobs(["101.srv"])["101.srv"]
    assert isinstance(facts, JobFacts) and (facts.state, facts.nodes, facts.walltime_s) == ("running", 1, 3600)
    assert found(pbs) == [("101.srv", "running")]


def test_both_jobs_in_one_invalid_listing_are_read() -> None:
    both = foreign_json(INVALID["function"]).removesuffix("    }\n}\n")
    records = read_records(f"Welcome to {{srv}}\n{both},\n" + foreign_json(INVALID["leading zeros"], job_id="7[].srv"))
    assert {number: record["job_state"] for number, record in records.items()} == {"99": "R", "7[]": "R"}


@pytest.mark.parametrize("state", ["M", "X", "F", "Z", ""])
def test_a_foreign_job_in_an_odd_state_does_not_hide_ours(server: Server, state: str) -> None:
    odd = FOREIGN_TEXT.replace("job_state = R", f"job_state = {state}")
    pbs = server("99.srv\n101.srv\n", job99=(odd, None), job101=(OURS_TEXT, OURS_JSON))
    assert found(pbs) == [("101.srv", "pending")]
    assert pbs.mine("nosuch") == []


def test_our_job_in_an_odd_state_counts_as_running_and_is_named(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    odd = OURS_TEXT.replace("job_state = Q", "job_state = M")
    pbs = server("101.srv\n", job101=(odd, None))
    assert found(pbs) == [("101.srv", "running")] and pbs.jobs(["101.srv"]) == {"101.srv": UNKNOWN}
    assert f"job 101.srv ({TOKEN}-ab) is in state M" in caplog.text


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ('{"timestamp":1,"Jobs":{"99.srv":{"Job_Name":"STD', [("101.srv", "pending")]),
        ('{"timestamp":1,"Jobs":{"99.srv":{"Job_Name":"STDIN","job_st', [("101.srv", "pending")]),
        (f'{{"Jobs":{{"99.srv":{{"Job_Name":"{TOKEN[:5]}', None),  # it may be ours
        (f'{{"Jobs":{{"99.srv":{{"Job_Name":"{TOKEN}-c', None),
        ('{"timestamp":1,"Jobs":{"99.srv":{', None),
        (f'{{"Jobs":{{"99.srv":{{"Job_Name":"{TOKEN}-cd","que', [("99.srv", "running"), ("101.srv", "pending")]),
    ],
)
def test_an_answer_that_is_cut_off(
    server: Server, cut: str, expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    pbs = server("99.srv\n101.srv\n", job99=(None, cut), job101=(None, OURS_JSON))
    assert found(pbs) == expected
    assert expected is not None or "99.srv" in caplog.text


def test_a_job_that_ends_between_two_queries_is_left_out(server: Server) -> None:
    pbs = server("98.srv\n101.srv\n", job101=(OURS_TEXT, OURS_JSON))
    assert found(pbs) == [("101.srv", "pending")]
    assert pbs.jobs(["98.srv", "101.srv"])["98.srv"] is GONE


@pytest.mark.parametrize("code", [0, 111, 255])
def test_a_server_that_is_not_reached_is_no_answer_whatever_the_exit_code(tmp_path: Path, code: int) -> None:
    for name in ("qselect", "qstat"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'pbs_iff: cannot connect to host' >&2\n"
            f"echo '{name}: cannot connect to server srv (errno=15031)' >&2\nexit {code}\n"
        )
        (tmp_path / name).chmod(0o755)
    pbs = Pbs({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert pbs.find(TOKEN) is None and pbs.mine("workq") is None
    assert pbs.jobs(["101.srv"]) == {"101.srv": UNKNOWN}


def test_lines_of_a_banner_are_no_jobs(server: Server) -> None:
    assert job_ids("*** Maintenance on Monday ***\n\n12.srv\n13[].srv\n14\nsee https://srv\n") == [
        "12.srv",
        "13[].srv",
        "14",
    ]
    pbs = server("Welcome!\n101.srv\n", job101=(f"Welcome!\n{OURS_TEXT}", OURS_JSON))
    assert found(pbs) == [("101.srv", "pending")]


def test_text_that_is_no_utf8_is_read(server: Server) -> None:
    odd = OURS_TEXT.replace("Job_Owner = me", "Job_Owner = J\xfcrgen")
    assert found(server("101.srv\n", job101=(odd, None))) == [("101.srv", "pending")]


# ---------------------------------------------------------------- Slurm

ROW = "{id}|{state}|1795370765|1795374366|N/A|{nodes}|debug|{status}|Priority|1:00:00|{hosts}|normal|{name}|"


def row(**changes: str) -> str:
    fields = {"id": "7", "state": "PENDING", "nodes": "2", "status": "0", "hosts": "", "name": f"{TOKEN}-ab"}
    return ROW.format(**(fields | changes))


@pytest.fixture
def squeue(tmp_path: Path) -> Callable[..., Slurm]:
    """Return a function that makes a cluster whose commands answer as given: output, error, exit code."""

    def make(out: bytes | str, error: str = "", code: int = 0) -> Slurm:
        (tmp_path / "out").write_bytes(out if isinstance(out, bytes) else out.encode())
        (tmp_path / "error").write_text(error)
        (tmp_path / "squeue").write_text(
            f"#!/bin/sh\n/usr/bin/env > {tmp_path}/environment\n"
            f"/bin/cat {tmp_path}/out; /bin/cat {tmp_path}/error >&2; exit {code}\n"
        )
        (tmp_path / "squeue").chmod(0o755)
        return Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"})

    return make


def states(slurm: Slurm) -> list[tuple[str, str]] | None:
    jobs = slurm.find(TOKEN)
    return None if jobs is None else [(job.job_id, job.state) for job in jobs]


def test_a_banner_and_a_warning_do_not_matter(squeue: Callable[..., Slurm]) -> None:
    banner = "####| Welcome |####|||||||||||||||\nMaintenance on Monday\n"
    slurm = squeue(f"{banner}{row()}\n", "squeue: warning: can't honor --foo")
    assert states(slurm) == [("7", "pending")]


@pytest.mark.parametrize(
    "error",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "squeue: error: Unable to establish configuration source",
    ],
)
def test_an_error_with_the_exit_code_0_is_no_answer(squeue: Callable[..., Slurm], error: str) -> None:
    assert states(squeue("", error)) is None and squeue("", error).jobs(["7"]) == {"7": UNKNOWN}
    assert states(squeue(f"{error}\n")) is None and squeue(f"{error}\n").jobs(["7"]) == {"7": UNKNOWN}


def test_an_odd_field_of_one_job_hides_no_other(squeue: Callable[..., Slurm]) -> None:
    odd = row(id="8", nodes="N/A", status="what", state="FAILED", hosts="a1", name="other")
    slurm = squeue(f"{odd}\n{row(id='9', state='WARPED', name='other')}\n{row()}\n")
    assert states(slurm) == [("7", "pending")] and [job.job_id for job in slurm.mine("debug") or ()] == ["7"]


def test_our_job_in_an_unknown_state_counts_as_running(
    squeue: Callable[..., Slurm], caplog: pytest.LogCaptureFixture
) -> None:
    assert states(squeue(f"{row(state='EXPEDITED')}\n")) == [("7", "running")]
    assert "state EXPEDITED" in caplog.text


def test_output_that_is_no_utf8(squeue: Callable[..., Slurm]) -> None:
    assert states(squeue(row(id="8", name="J\xfcrgen").encode("latin-1") + f"\n{row()}\n".encode())) == [
        ("7", "pending")
    ]


def test_several_partitions_and_a_queue_with_its_server(squeue: Callable[..., Slurm], tmp_path: Path) -> None:
    slurm = squeue(f"{row().replace('|debug|', '|a,debug|')}\n")
    assert [job.job_id for job in slurm.mine("debug,b") or ()] == ["7"] and slurm.mine("b") == []
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n[ $4 = a ] && echo PartitionName=a State=UP && exit 0\n"
        "[ $4 = b ] && echo PartitionName=b State=DOWN && exit 0\necho Partition $4 not found; exit 1\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    assert slurm.queue_problem("a,b") is None and "partition b is down" in str(slurm.queue_problem("b,c"))
    (tmp_path / "qstat").write_text('#!/bin/sh\necho \'{"Queue": {"workq": {"enabled": "True"}}}\'\n')
    (tmp_path / "qstat").chmod(0o755)
    assert Pbs(slurm.environment).queue_problem("workq@srv") is None


def test_numbers_of_nodes() -> None:
    assert [count(text) for text in ("4", "9K", "1.5K", "2-4", "N/A", "")] == [4, 9216, 1536, 2, 1, 1]


def test_times_in_the_usual_form() -> None:
    (read,) = queue_rows(row().replace("1795370765", "2026-11-28T17:00:00"))
    assert read.facts and read.facts.submitted == time.mktime((2026, 11, 28, 17, 0, 0, 0, 0, -1))
    assert read.facts.expected_start == 1795374366 and read.facts.started is None


def test_the_users_own_filters_have_no_effect(
    squeue: Callable[..., Slurm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQUEUE_STATES=R in a shell's start file would hide a pending job, which would then count as gone."""
    variables = ("SQUEUE_STATES", "SQUEUE_PARTITION", "SACCT_FORMAT", "SCANCEL_STATE", "SLURM_CLUSTERS", "PBS_DPREFIX")
    for name in (*variables, "LANG", "LC_ALL"):
        monkeypatch.setenv(name, "de_DE")
    states(squeue(f"{row()}\n"))
    seen = (tmp_path / "environment").read_text().splitlines()
    assert not [line for line in seen if line.startswith(variables)]
    assert "LC_ALL=C" in seen and "SLURM_TIME_FORMAT=%s" in seen


@pytest.mark.parametrize(
    ("error", "left"),
    [
        ("scancel: error: Kill job error on job id 7: Invalid job id specified", []),
        ("scancel: error: Kill job error on job id 7: Job/step already completing or completed", []),
        ("scancel: error: Kill job error on job id 8: Access/permission denied", ["8"]),
        ("scancel: error: Unable to contact slurm controller (connect failure)", ["7", "8", "78"]),
    ],
)
def test_only_the_jobs_whose_cancellation_failed_are_left(tmp_path: Path, error: str, left: list[str]) -> None:
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho '{error}' >&2; exit 1\n")
    (tmp_path / "scancel").chmod(0o755)
    assert Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"}).cancel(["7", "8", "78"]) == left


def test_a_cluster_without_sacct_keeps_no_records(squeue: Callable[..., Slurm], tmp_path: Path) -> None:
    squeue("")
    assert Slurm({"PATH": str(tmp_path)}).jobs(["7"]) == {"7": GONE}


# ---------------------------------------------------------------- both


def test_a_command_that_hangs_leaves_no_process(tmp_path: Path) -> None:
    """Also where a wrapper has started the real command."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nsleep 30 & echo $! > {tmp_path}/child; wait\n")
    (tmp_path / "squeue").chmod(0o755)
    began = time.monotonic()
    reply = ask([str(tmp_path / "squeue")], {}, 0.5)
    assert reply.code is None and "did not answer in" in reply.message and time.monotonic() - began < patience(5)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_missing_command_is_told_from_a_slow_one() -> None:
    reply = run_bounded(["nosuchcommand"], {"PATH": "/nowhere"}, 1)
    assert reply.missing and reply.message == "nosuchcommand cannot be run: No such file or directory"

"""Campaigns that meet bad updates, a full disk and lost files: calm, honest, and right in the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import command, environment, final_hash, journal, run, tasks_done, write_campaign
from patience import patience, wait_until
from pilot_site import pilot_site

from apps.artifacts.store import sha256_file
from workflows.runtime.orphans import find_orphans

pytestmark = pytest.mark.campaign

POISON = """
from apps.ranks.process_group import ProcessGroup

honest = ProcessGroup.write

def poisoned(group, store, tensors, kind):
    if kind == "update":
        name = next(iter(tensors))
        tensors = {**tensors, name: tensors[name].detach() * float("nan")}
    return honest(group, store, tensors, kind)

ProcessGroup.write = poisoned
"""

SITE = """
from pathlib import Path
from dataclasses import replace
from site_configs.library.site import Site
from site_configs.local import site as local

def site(name: str, run_dir: Path) -> Site:
    return replace(local(name, run_dir), setup="export PYTHONPATH={folder}")
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished campaign, and beside it a copy of that."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    folder.mkdir()
    ended = run(folder, write_campaign(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shutil.copytree(folder, folder.with_name("copy"))
    return folder


@pytest.fixture
def finished(original: Path) -> Path:
    """The run directory of a finished campaign, as it was at its end."""
    shutil.rmtree(original)
    shutil.copytree(original.with_name("copy"), original)
    return original / "runs" / "nano"


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A site whose workers send values that are not finite."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    path = tmp_path / "poisoned.py"
    path.write_text(SITE.format(folder=tmp_path))
    return path


def test_a_refused_update_stops_the_campaign_or_is_left_out_as_the_quorum_says(tmp_path: Path, poisoned: Path) -> None:
    run_dir = tmp_path / "runs" / "nano"
    ended = run(tmp_path, write_campaign(tmp_path, rounds=2), "--sites", f"aurora={poisoned},frontier")
    assert ended.returncode == 1
    assert "round 1 has 1 of 2 updates and needs 2: aurora: " in ended.stderr and "not finite" in ended.stderr
    assert "--resume runs/nano" in ended.stderr and "Traceback" not in ended.stderr
    assert len(tasks_done(run_dir, "local_train")) == 2  # a refused update is not asked for again
    lowered = run(tmp_path, "--resume", "runs/nano", "--set", "strategy.quorum=1")
    assert lowered.returncode == 0, lowered.stdout + lowered.stderr
    refusals = journal(run_dir, "update_refused")
    assert [(r["site"], r["round"]) for r in refusals] == [("aurora", n) for n in (1, 1, 2)]
    assert "that are not finite in tensor" in refusals[0]["reason"]
    assert [r["weights"] for r in journal(run_dir, "aggregated")] == [{"frontier": 1.0}] * 2
    assert "not finite" in (run_dir / "report.html").read_text()
    assert "aurora" in lowered.stdout and "refused" in lowered.stdout


def test_a_site_that_was_mended_is_asked_again_on_resume(tmp_path: Path, poisoned: Path) -> None:
    """The site trains for real once its storage can be written: the failed round is repeated, not replayed."""
    campaign, run_dir = write_campaign(tmp_path), tmp_path / "runs" / "nano"
    blocker = run_dir / "sites" / "aurora" / "in"
    blocker.parent.mkdir(parents=True)
    blocker.write_text("a file where a folder should be")
    ended = run(tmp_path, campaign)
    assert ended.returncode == 1 and "aurora" in ended.stderr and "Traceback" not in ended.stderr
    blocker.unlink()
    assert run(tmp_path, "--resume", run_dir).returncode == 0
    assert [set(r["weights"]) for r in journal(run_dir, "aggregated")] == [{"aurora", "frontier"}] * 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 300 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("only root can mount the small file system that this test fills")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_it_in_order_and_space_brings_it_back(finished: Path, small_disk: Path) -> None:
    campaign, run_dir = write_campaign(small_disk), small_disk / "runs" / "nano"
    driver = subprocess.Popen(
        command(campaign),
        cwd=small_disk,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: list(run_dir.glob("sites/*/progress.json")), 60, unless=driver.poll)
    fill(small_disk)
    output, _ = driver.communicate(timeout=patience(120))
    assert driver.returncode == 1, output
    assert "No space left on device" in output and "Traceback" not in output and "--resume" in output
    (small_disk / "filler").unlink()
    resumed = run(small_disk, "--resume", run_dir)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert final_hash(run_dir) == final_hash(finished)
    assert find_orphans(journal(run_dir, "campaign_opened")[0]["token"]) == []


def fill(disk: Path) -> Path:
    """Fill a file system to its last byte, and return the file that does it."""
    with open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            try:
                filler.write(bytes(1 << 16))
            except OSError:
                return disk / "filler"


FAR = """
from dataclasses import replace
from pathlib import Path
from site_configs.library.site import Site
from site_configs.local import site as local

def site(name: str, run_dir: Path) -> Site:
    return replace(local(name, run_dir), storage_root=Path({disk!r}) / name)
"""


def test_a_site_whose_own_disk_is_full_waits_and_comes_back(tmp_path: Path, finished: Path, small_disk: Path) -> None:
    (tmp_path / "far.py").write_text(FAR.format(disk=str(small_disk)))
    filler, run_dir = fill(small_disk), tmp_path / "runs" / "nano"
    driver = subprocess.Popen(
        command(write_campaign(tmp_path), "--sites", f"aurora={tmp_path / 'far.py'},frontier"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: journal(run_dir, "site_waits"), 60, unless=driver.poll)
    filler.unlink()
    output, _ = driver.communicate(timeout=patience(120))
    assert driver.returncode == 0, output
    assert "waits for aurora: cannot write: No space left on device at " in output and "! aurora: works again" in output
    assert final_hash(run_dir) == final_hash(finished)


def test_a_lost_and_an_altered_update_are_made_again_on_resume(finished: Path) -> None:
    before = final_hash(finished)
    last = [r["result"] for r in tasks_done(finished, "local_train") if r["round"] == 3]
    Path(last[0]["store"], f"{last[0]['artifact']['sha256']}.safetensors").unlink()
    for result in last:
        (finished / "artifacts" / f"{result['artifact']['sha256']}.safetensors").unlink()
    resumed = run(finished, "--resume", finished, "--set", "rounds=4")
    assert resumed.returncode == 0, resumed.stderr
    versions = {r["result"]["version"]: r["result"]["artifact"]["sha256"] for r in tasks_done(finished, "aggregate")}
    assert versions[3] == before and set(versions) == {1, 2, 3, 4}


def test_a_killed_interchange_is_replaced_for_that_site_alone(tmp_path: Path, finished: Path) -> None:
    """Parsl's executor of a batch site does not work without this process; the others notice nothing."""
    campaign, run_dir = write_campaign(tmp_path), tmp_path / "runs" / "nano"
    arguments = (campaign, "--sites", f"aurora={pilot_site(tmp_path)},frontier")
    driver = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: list(run_dir.glob("sites/*/progress.json")), 60, unless=driver.poll)
    token = journal(run_dir, "campaign_opened")[0]["token"]
    (pid,) = [r["interchange_pid"] for r in journal(run_dir, "executor_started") if "interchange_pid" in r]
    assert pid in {process.pid for process in find_orphans(token)}  # as a driver that resumes would see it
    os.kill(pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=patience(120))
    assert driver.returncode == 0, output
    assert "! aurora: its interchange (a process on this host) has ended; another is started" in output
    assert final_hash(run_dir) == final_hash(finished)
    assert find_orphans(token) == []


def test_a_damaged_global_model_is_made_again(finished: Path) -> None:
    path = finished / "artifacts" / f"{final_hash(finished)}.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\xff\x00\xff\x00"
    path.write_bytes(content)
    first = run(finished, "--resume", finished, "--set", "rounds=4")
    assert first.returncode in (0, 1) and "Traceback" not in first.stderr
    assert first.returncode == 0 or run(finished, "--resume", finished).returncode == 0
    assert sha256_file(path) == path.stem


def test_a_path_that_a_shell_would_take_apart_and_variables_of_an_old_allocation(
    tmp_path: Path, finished: Path
) -> None:
    """A laptop's folder, and a terminal that was once inside a batch job: nothing of it matters at local sites."""
    folder = tmp_path / 'Uni; it\'s & "mine" $HOME ~ (2)'
    folder.mkdir()
    stale = {"SLURM_JOB_END_TIME": "1700000000", "CROSSFED_BLOCK_END": "1700000000", "PBS_JOBID": "1.old"}
    ended = subprocess.run(
        command(write_campaign(folder)),
        cwd=folder,
        env={**environment(), **stale},
        capture_output=True,
        text=True,
        timeout=patience(240),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert final_hash(folder / "runs" / "nano") == final_hash(finished)


def test_the_reader_of_the_output_ends_and_the_campaign_does_not(tmp_path: Path, finished: Path) -> None:
    write_campaign(tmp_path)
    line = f"{' '.join(command('nano.yaml'))} | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=patience(240)
    )
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert final_hash(tmp_path / "runs" / "nano") == final_hash(finished)
    assert "is not read any more" in (tmp_path / "runs" / "nano" / "logs" / "driver.log").read_text()

"""Whole campaigns with real Parsl executors and worker processes, run as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from campaigns import command, environment, final_hash, journal, open_to_others, run, tasks_done, write_campaign
from patience import patience, wait_until
from pilot_site import pilot_site

from apps.artifacts.store import sha256_file
from workflows.runtime.orphans import find_orphans

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(folder, write_campaign(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "runs" / "nano"


def token(run_dir: Path) -> str:
    return journal(run_dir, "campaign_opened")[0]["token"]


def assert_nothing_left(run_dir: Path) -> None:
    assert [p.cmdline() for p in find_orphans(token(run_dir))] == []


def test_a_campaign_leaves_what_the_design_promises(undisturbed: Path) -> None:
    for name in (
        "campaign.yaml",
        "environment.json",
        "metrics.csv",
        "report.html",
        "model/config.json",
        "logs/driver.log",
    ):
        assert (undisturbed / name).is_file(), name
    assert journal(undisturbed)[-1]["event"] == "campaign_finished"
    assert_nothing_left(undisturbed)


def test_only_the_user_may_read_what_a_campaign_leaves(undisturbed: Path) -> None:
    """Driver and workers, started with the usual umask."""
    assert open_to_others(undisturbed) == []


def test_the_model_loads_with_transformers_alone(undisturbed: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "model")
    assert model.num_parameters() == tasks_done(undisturbed, "prepare")[0]["result"]["parameters"]
    assert tokenizer.decode(tokenizer("CCO")["input_ids"]) == "CCO"


def test_metrics_have_a_row_for_each_round_model_and_task(undisturbed: Path) -> None:
    with open(undisturbed / "metrics.csv") as stream:
        table = list(csv.DictReader(stream))
    rows = [(int(r["round"]), r["model"], r["task"]) for r in table if r["split"] != "train"]
    trained = [(int(r["round"]), r["model"]) for r in table if r["split"] == "train"]
    assert sorted(trained) == [(n, site) for n in (1, 2, 3) for site in ("aurora", "frontier")]
    assert len(rows) == len(set(rows)) == 4 * (1 + 3 * 3)  # tasks x (round 0 + 3 rounds x 3 models)
    assert {model for number, model, _ in rows if number == 2} == {"global", "aurora", "frontier"}


def test_every_artifact_is_named_by_its_content(undisturbed: Path) -> None:
    found = list(undisturbed.rglob("artifacts/*.safetensors"))
    assert len(found) >= 3 + 6 + 1
    assert all(path.stem == sha256_file(path) for path in found)


def test_sites_hold_only_their_own_tasks(undisturbed: Path) -> None:
    for site, tasks in (
        ("aurora", {"forward_synthesis", "retrosynthesis"}),
        ("frontier", {"molecule_captioning", "molecule_generation"}),
    ):
        shards = list((undisturbed / "sites" / site / "shard").glob("*.jsonl*"))
        records = [json.loads(line) for path in shards for line in path.read_text().splitlines()]
        assert {r["task"] for r in records} == tasks and len(records) == 40


def test_a_weight_is_the_share_of_samples(undisturbed: Path) -> None:
    assert [r["weights"] for r in journal(undisturbed, "aggregated")] == [{"aurora": 0.5, "frontier": 0.5}] * 3


def test_the_same_command_again_names_the_finished_run_and_numbers_the_new_one(undisturbed: Path) -> None:
    folder = undisturbed.parent.parent
    checked = run(folder, folder / "nano.yaml", "--check")
    assert checked.returncode == 0 and "runs/nano-2" in checked.stdout
    named = run(folder, folder / "nano.yaml", "--name", "nano")
    assert named.returncode == 2 and "is finished" in named.stderr


def test_resuming_a_finished_run_does_no_work_twice(undisturbed: Path) -> None:
    before = len(journal(undisturbed, "task_done"))
    again = run(undisturbed.parent.parent, "--resume", "runs/nano")
    assert again.returncode == 0, again.stderr
    assert "All 3 rounds are done already" in again.stdout
    assert len(journal(undisturbed, "task_done")) == before


def kill_driver(driver: subprocess.Popen[bytes], token: str) -> None:
    os.kill(driver.pid, signal.SIGKILL)


def kill_group(driver: subprocess.Popen[bytes], token: str) -> None:
    os.killpg(driver.pid, signal.SIGKILL)


def kill_everything(driver: subprocess.Popen[bytes], token: str) -> None:
    for process in [psutil.Process(driver.pid), *find_orphans(token)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def test_killed_at_random_instants_it_ends_with_the_same_model(undisturbed: Path, tmp_path: Path) -> None:
    """Instants of the work, not of the clock: after so many tasks, the first time before any worker is there."""
    rng = random.Random(7)
    campaign, run_dir = write_campaign(tmp_path), tmp_path / "runs" / "nano"
    arguments: tuple[object, ...] = (campaign,)
    finished: dict[Path, bytes] = {}
    instants = [0, *sorted(rng.sample(range(1, len(journal(undisturbed, "task_done"))), 3))]
    kills = [kill_driver, *rng.sample([kill_driver, kill_group, kill_everything], 3)]
    for kill, done in zip(kills, instants, strict=True):
        with open(tmp_path / "out", "ab") as out:
            driver = subprocess.Popen(
                command(*arguments), cwd=tmp_path, env=environment(), stdout=out, stderr=out, start_new_session=True
            )
        wait_for_tasks(driver, run_dir, done)
        time.sleep(rng.uniform(0, 0.2))
        kill(driver, token(run_dir))
        driver.wait()
        with open(run_dir / "journal.jsonl", "ab") as stream:
            stream.write(b'{"seq":99,"event":"task_do')  # as if cut off in the middle of a record
        finished |= {p: p.read_bytes() for p in run_dir.glob("sites/*/manifests/*.json")}
        arguments = ("--resume", run_dir)
    ended = run(tmp_path, "--resume", run_dir)
    assert ended.returncode == 0, ended.stderr
    assert final_hash(run_dir) == final_hash(undisturbed)
    assert all(path.read_bytes() == content for path, content in finished.items())
    trained = [(r["site"], r["round"]) for r in tasks_done(run_dir, "local_train")]
    assert len(trained) == len(set(trained)) == 6
    assert_nothing_left(run_dir)


def wait_for_tasks(driver: subprocess.Popen[bytes], run_dir: Path, count: int) -> None:
    """Wait until a driver has started its executors and so many tasks of the campaign are done."""
    before = len(journal(run_dir, "executor_started"))
    wait_until(
        lambda: len(journal(run_dir, "executor_started")) > before and len(journal(run_dir, "task_done")) >= count,
        60,
        unless=lambda: driver.poll() is not None,
    )


def the_worker(run_dir: Path, site: str) -> list[psutil.Process]:
    return [p for p in find_orphans(token(run_dir)) if p.name() == f"cf-{site}"]


def its_server(run_dir: Path, site: str) -> list[psutil.Process]:
    """The process that forks the workers of all sites: they end with it."""
    return [psutil.Process(r["fork_server_pid"]) for r in journal(run_dir, "executor_started") if r["site"] == site]


def the_pool(run_dir: Path, site: str) -> list[psutil.Process]:
    """Parsl's worker pool in the block of a batch site."""
    return [p for p in find_orphans(token(run_dir)) if p.name() != "bash" and "process_worker_pool.py" in line(p)][:1]


def worker_of_the_pool(run_dir: Path, site: str) -> list[psutil.Process]:
    (pool,) = the_pool(run_dir, site)
    spawned = [p for p in pool.children() if "resource_tracker" not in line(p)]  # its helper first, then its worker
    return sorted(spawned, key=lambda p: p.pid)[-1:]


def line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


@pytest.mark.parametrize("victims_of", [the_worker, its_server, worker_of_the_pool, the_pool])
def test_a_killed_worker_is_replaced_and_the_model_stays_the_same(
    undisturbed: Path, tmp_path: Path, victims_of: Callable[[Path, str], list[psutil.Process]]
) -> None:
    run_dir, in_pool = tmp_path / "runs" / "nano", "pool" in victims_of.__name__
    sites = ("--sites", f"aurora={pilot_site(tmp_path)},frontier") if in_pool else ()
    with open(tmp_path / "out", "wb") as out:
        driver = subprocess.Popen(
            command(write_campaign(tmp_path), *sites), cwd=tmp_path, env=environment(), stdout=out, stderr=out
        )
    wait_until((run_dir / "sites" / "aurora" / "progress.json").exists, 60, unless=driver.poll)
    victims = victims_of(run_dir, "aurora")
    assert len(victims) == 1
    victims[0].kill()
    assert driver.wait(timeout=patience(240)) == 0, (tmp_path / "out").read_text()
    assert final_hash(run_dir) == final_hash(undisturbed)
    assert_nothing_left(run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_cleanly_and_names_the_way_back(tmp_path: Path, number: signal.Signals) -> None:
    campaign, run_dir = write_campaign(tmp_path, rounds=500), tmp_path / "runs" / "nano"
    driver = subprocess.Popen(
        command(campaign),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where the tests run under nohup
    )
    wait_until(lambda: list(run_dir.glob("sites/*/progress.json")), 60, unless=driver.poll)
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=patience(60))
    assert driver.returncode == 130, output
    assert "--resume runs/nano" in output and "Traceback" not in output
    assert "Interrupted; the workers on this machine have ended" in output
    assert journal(run_dir)[-1]["event"] == "driver_stopped"
    assert_nothing_left(run_dir)


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    campaign, run_dir = write_campaign(tmp_path, rounds=500), tmp_path / "runs" / "nano"
    driver = subprocess.Popen(command(campaign), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    wait_for_tasks(driver, run_dir, 0)
    second = run(tmp_path, "--resume", run_dir)
    assert second.returncode == 2 and f"process {driver.pid}" in second.stderr
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=patience(60)) == 130

"""Campaigns of several strategies as a user runs them: late sites, killed drivers, and no update counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from campaigns import command, environment, journal, run, tasks_done, write_campaign
from patience import wait_until

from workflows.dataflow.replay import decode_event
from workflows.planning.campaign_file import load_campaign
from workflows.runtime.orphans import find_orphans
from workflows.strategies import make_strategy
from workflows.strategies.base import Aggregate

pytestmark = pytest.mark.campaign

WAITING = """
import time
from pathlib import Path

from apps.training import attempt as local_training

honest = local_training.attempt_task

def waiting(task, *arguments):
    while task.place["round"] == {round} and not any(
        all(word in line for word in {words!r}) for line in Path({journal!r}).read_text().splitlines()
    ):
        time.sleep(0.05)
    return honest(task, *arguments)

local_training.attempt_task = waiting
"""

SITE = """
from dataclasses import replace
from pathlib import Path

from site_configs.library.site import Site
from site_configs.local import site as local

def site(name: str, run_dir: Path) -> Site:
    return replace(local(name, run_dir), setup="export PYTHONPATH={folder}")
"""


def site_that_waits(folder: Path, name: str, round: int, *words: str) -> Path:
    """A site whose workers begin with the training of a round once the journal has a line with these words."""
    own = folder / name
    own.mkdir()
    run_journal = str(folder / "runs" / "nano" / "journal.jsonl")
    (own / "sitecustomize.py").write_text(WAITING.format(round=round, words=words, journal=run_journal))
    (own / "machine.py").write_text(SITE.format(folder=own))
    return own / "machine.py"


def test_a_late_site_is_left_out_of_its_round_and_its_update_never_counts(tmp_path: Path) -> None:
    """The late site trains for round 1 when that is over; round 2 waits until its update has come."""
    late = site_that_waits(tmp_path, "late", 1, '"event":"aggregated"')
    other = site_that_waits(tmp_path, "other", 2, '"kind":"UpdateArrived"', '"site":"frontier"')
    campaign = write_campaign(tmp_path, strategy={"name": "fedavg", "quorum": 1, "deadline_s": 3.0})
    ended = run(tmp_path, campaign, "--sites", f"aurora={other},frontier={late}")
    run_dir = tmp_path / "runs" / "nano"
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = journal(run_dir, "aggregated")
    assert [set(r["weights"]) for r in made][:2] == [{"aurora"}, {"aurora"}]
    assert all(sum(r["weights"].values()) == pytest.approx(1.0) for r in made)
    events = journal(run_dir, "strategy_event")
    updates = [r["fields"] for r in events if r["kind"] == "UpdateArrived"]
    arrived = [update["task"] for update in updates if update["site"] == "frontier"]
    assert len(arrived) >= 1 and len(arrived) == len(set(arrived))
    late_arrival = next(r["seq"] for r in events if r["fields"].get("task") == arrived[0])
    assert made[0]["seq"] < late_arrival < made[1]["seq"]  # it came, while round 2 went on without it
    counted = [(u["site"], u["order"]) for r in made for u in r["updates"]]
    assert ("frontier", 1) not in counted and len(counted) == len(set(counted))
    assert "TimerFired" in {r["kind"] for r in events}


def wait_for_events(driver: subprocess.Popen[bytes], run_dir: Path, count: int) -> None:
    """Until the strategy has been told of so many events."""

    def told() -> bool:
        return (run_dir / "journal.jsonl").exists() and len(journal(run_dir, "strategy_event")) >= count

    wait_until(told, 120, unless=lambda: driver.poll() is not None)


def replayed(run_dir: Path) -> list[Aggregate]:
    """Return the aggregations of a strategy that gets the events of the journal again."""
    campaign = load_campaign(run_dir / "campaign.yaml")
    strategy = make_strategy(campaign.strategy, campaign.rounds, campaign.training.steps)
    made: list[Aggregate] = []
    for record in journal(run_dir, "strategy_event"):
        answer = strategy.react(decode_event(record["kind"], record["fields"]))
        made += [action for action in answer if isinstance(action, Aggregate)]
    return made


@pytest.mark.parametrize(
    "strategy",
    [{"name": "fedbuff", "buffer": 2, "momentum": 0.5}, {"name": "fedasync", "late_binding": True}],
    ids=["fedbuff", "fedasync-late-binding"],
)
def test_killed_at_random_instants_an_asynchronous_campaign_goes_on_with_its_own_history(
    tmp_path: Path, strategy: dict[str, Any]
) -> None:
    rng = random.Random(strategy["name"])
    campaign = write_campaign(tmp_path, strategy=strategy, rounds=12, evaluation={"per_task": 1, "every": 6})
    run_dir, arguments = tmp_path / "runs" / "nano", (campaign,)
    finished: dict[Path, bytes] = {}
    for count in (rng.randint(4, 8), rng.randint(10, 14)):
        with open(tmp_path / "out", "ab") as out:
            driver = subprocess.Popen(command(*arguments), cwd=tmp_path, env=environment(), stdout=out, stderr=out)
        wait_for_events(driver, run_dir, count)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        before = journal(run_dir)
        finished |= {path: path.read_bytes() for path in run_dir.glob("sites/*/manifests/*.json")}
        arguments = ("--resume", run_dir)  # type: ignore[assignment]
    ended = run(tmp_path, "--resume", run_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert journal(run_dir)[: len(before)] == before
    made = replayed(run_dir)
    told = journal(run_dir, "aggregated")
    assert [r["version"] for r in told] == [action.version for action in made] == list(range(1, 13))
    for action, record in zip(made, told, strict=True):
        assert [u["weight"] for u in record["updates"]] == [weight for _, weight in action.parts]
        total = sum(u["weight"] for u in record["updates"]) + sum(record["models"].values())
        assert total == pytest.approx(1.0)
    assert_nothing_twice(run_dir, finished)
    assert find_orphans(journal(run_dir, "campaign_opened")[0]["token"]) == []
    if strategy["name"] == "fedbuff":
        assert " of 12 versions of fedbuff are done; sites aurora, frontier" in ended.stdout
        assert "version  global loss" in ended.stdout
        assert_it_takes_more_versions(tmp_path, run_dir)


def assert_it_takes_more_versions(folder: Path, run_dir: Path) -> None:
    """A finished campaign without rounds goes on where it was asked to, and everything before stays as it is."""
    before = models_made(run_dir)
    more = run(folder, "--resume", run_dir, "--set", "rounds=14")
    assert more.returncode == 0, more.stderr
    assert models_made(run_dir)[: len(before)] == before
    assert sorted(r["result"]["version"] for r in models_made(run_dir)) == list(range(1, 15))
    assert [r["version"] for r in journal(run_dir, "aggregated")] == list(range(1, 15))
    assert "All 14 versions of fedbuff are done already" in run(folder, "--resume", run_dir).stdout


def models_made(run_dir: Path) -> list[dict[str, Any]]:
    made = tasks_done(run_dir, "aggregate")
    return sorted(made, key=lambda r: r["seq"])


def assert_nothing_twice(run_dir: Path, finished: dict[Path, bytes]) -> None:
    assert finished and all(path.read_bytes() == content for path, content in finished.items())
    trained = [(r["site"], r["round"]) for r in tasks_done(run_dir, "local_train")]
    assert len(trained) == len(set(trained))
    for site in ("aurora", "frontier"):
        orders = sorted(number for name, number in trained if name == site)
        assert orders == list(range(1, len(orders) + 1))
    models = [r["result"]["version"] for r in tasks_done(run_dir, "aggregate")]
    assert len(models) == len(set(models)) == 12
    blocks = [r["fields"]["site"] for r in journal(run_dir, "strategy_event") if r["kind"] == "BlockStarted"]
    assert len(blocks) in (0, 4, 5, 6)  # one for each site and driver that got so far

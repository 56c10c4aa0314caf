"""The server's work in a block of its own, and in the worker of a site: the same model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from batch_cases import kill
from batch_sites import events, finish, start, trained_once, wait_for
from campaigns import final_hash, nano, run, tasks_done
from pilot_site import pilot_site

from workflows.runtime.orphans import find_orphans

pytestmark = pytest.mark.campaign
EVALUATIONS = 1 + 3 * 3  # the first model; of each round the model and its two updates


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(nano(**changes)))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the campaign on this machine alone."""
    folder = tmp_path_factory.mktemp("here")
    ended = run(folder, write(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "runs" / "nano"


@pytest.fixture(scope="module")
def undisturbed(here: Path) -> str:
    """The final model of that campaign."""
    return final_hash(here)


def first_loss(run_dir: Path) -> float:
    """Return the loss of the first model."""
    (found,) = [r["result"]["mean_loss"] for r in tasks_done(run_dir, "evaluate") if r["round"] == 0]
    return float(found)


def test_by_the_ranks_of_a_site(tmp_path: Path, here: Path) -> None:
    ranks = {"config": "local", "ranks": 2, "tasks": ["molecule_description"]}
    changes = {"sites": nano()["sites"] | {"frontier": ranks}, "evaluation": {"site": "frontier", "per_task": 1}}
    ended, run_dir = run(tmp_path, write(tmp_path, rounds=1, **changes)), tmp_path / "runs" / "nano"
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(tasks_done(run_dir, "evaluate")) == 4
    assert first_loss(run_dir) == pytest.approx(first_loss(here), rel=1e-5)
    assert (run_dir / "sites" / "frontier" / "logs" / "evaluation-0001" / "rank-1.log").exists()


def check_end(run_dir: Path, expected: str) -> None:
    assert final_hash(run_dir) == expected and trained_once(run_dir)
    scored = [(r["result"]["who"], r["round"]) for r in tasks_done(run_dir, "evaluate")]
    assert len(scored) == len(set(scored)) == EVALUATIONS
    assert (run_dir / "model" / "config.json").is_file() and (run_dir / "report.html").is_file()
    assert not find_orphans(events(run_dir, "campaign_opened")[0]["token"])


def test_blocks_of_their_own(tmp_path: Path, undisturbed: str) -> None:
    """The driver is killed in the middle of the evaluations; they continue in new blocks."""
    pilot, run_dir = {"config": str(pilot_site(tmp_path))}, tmp_path / "runs" / "nano"
    driver = start(tmp_path, write(tmp_path, server={"site": pilot}, evaluation={"site": pilot, "per_task": 1}))
    wait_for("two evaluations were done", lambda: len(tasks_done(run_dir, "evaluate")) >= 2, driver)
    kill(driver)
    finish(start(tmp_path, "--resume", run_dir))
    check_end(run_dir, undisturbed)
    assert {r["site"] for r in events(run_dir, "block_submitted")} == {"server-block", "evaluator"}


def test_in_the_worker_of_a_site_then_on_this_machine(tmp_path: Path, undisturbed: str) -> None:
    """A resume moves both; what is done is not done again."""
    sites = nano()["sites"] | {"frontier": {"config": str(pilot_site(tmp_path)), "tasks": ["molecule_description"]}}
    own = {"server": {"site": "frontier"}, "evaluation": {"site": "frontier", "per_task": 1}}
    driver, run_dir = start(tmp_path, write(tmp_path, sites=sites, **own)), tmp_path / "runs" / "nano"
    wait_for("a round was evaluated", lambda: len(tasks_done(run_dir, "evaluate")) >= 3, driver)
    kill(driver)
    before = len(tasks_done(run_dir, "evaluate"))
    finish(start(tmp_path, "--resume", run_dir, "--set", "evaluation.site=null", "--set", "server.site=aurora"))
    check_end(run_dir, undisturbed)
    assert len(tasks_done(run_dir, "evaluate")) > before
    (changed,) = events(run_dir, "campaign_changed")
    assert changed["changes"] == {"evaluation.site": ["frontier", None], "server.site": ["frontier", "aurora"]}
    assert {r["site"] for r in events(run_dir, "block_submitted")} == {"frontier"}

"""Late binding over a real batch scheduler: the block is asked for first, and its loss is told to the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from batch_sites import batch_campaign, events, finish, nothing_left, slurm_entry, start, trained_once, wait_for

if TYPE_CHECKING:
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]
WALLTIME_S = 600


def told(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [r["fields"] for r in events(run_dir, "strategy_event") if r["kind"] == kind]


def test_a_lost_block_is_told_and_the_next_one_gets_the_newest_model(tmp_path: Path, slurm_site: SlurmCluster) -> None:
    campaign, run_dir = tmp_path / "campaign.yaml", tmp_path / "runs" / "nano"
    sites = {"alpha": slurm_entry(slurm_site, tmp_path / "storage", walltime="10m")}
    strategy = {"name": "fedasync", "late_binding": True}
    training = {"steps": 40, "batch_size": 4, "learning_rate": 0.003}
    campaign.write_text(yaml.safe_dump(batch_campaign(sites, strategy=strategy, rounds=5, training=training)))
    driver = start(tmp_path, campaign)
    wait_for("an update", lambda: told(run_dir, "UpdateArrived"), driver)
    slurm_site.run("scancel", events(run_dir, "block_submitted")[0]["job_id"])
    finish(driver)
    (facts,) = told(run_dir, "CampaignStarted")[0]["sites"]
    assert (facts["max_blocks"], facts["walltime_s"]) == (1, WALLTIME_S)
    first, second = told(run_dir, "BlockStarted")
    (lost,) = told(run_dir, "BlockEnded")
    assert first["time_s"] < lost["time_s"] < second["time_s"] and lost["site"] == "alpha"
    for begun in (first, second):
        assert 0 < begun["ends_s"] - begun["time_s"] <= WALLTIME_S
    assert first["wait_s"] == 0.0  # the block that the site enrolled in
    assert [r["version"] for r in events(run_dir, "aggregated")] == [1, 2, 3, 4, 5]
    assert all(u["staleness"] == 0 for r in events(run_dir, "aggregated") for u in r["updates"])
    assert trained_once(run_dir) and nothing_left(run_dir, slurm_site)
    assert len(events(run_dir, "block_submitted")) == 2

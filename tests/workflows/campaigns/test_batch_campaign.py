"""Whole campaigns over batch schedulers of different policies, through the real providers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from batch_sites import batch_campaign, events, finish, nothing_left, pbs_entry, slurm_entry, start, trained_once
from campaigns import open_to_others, tasks_done
from patience import patience

from workflows.records.queue_history import read_history

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]
TINY = Path(__file__).resolve().parents[3] / "workflows" / "campaigns" / "tiny.yaml"


def set_sites(sites: dict[str, dict]) -> list[str]:
    """Settings of sites as options of the command line."""
    pairs = ((name, key, value) for name, entry in sites.items() for key, value in entry.items())
    return [
        word
        for name, key, value in pairs
        for word in (
            "--set",
            f"sites.{name}.{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()}",
        )
    ]


def test_the_tiny_campaign_over_two_slurm_machines_and_a_pbs_machine(
    tmp_path: Path, slurm_site: SlurmCluster, other_slurm: SlurmCluster, pbs_site: PbsFacility
) -> None:
    """Three schedulers with limits of their own, swapped in from the command line."""
    storage = tmp_path / "storage"
    sites = {
        "perlmutter": slurm_entry(slurm_site, storage, partition="regular", account="fusion", walltime="1h"),
        "frontier": slurm_entry(other_slurm, storage, nodes=2, cores=2),
        "polaris": pbs_entry(pbs_site, storage, queue="debug", account="fusion", options=["-l filesystems=home:eagle"]),
    }
    options = [*set_sites(sites), "--set", "training.steps=4", "--set", "rounds=2", "--set", "data.per_task=20"]
    finish(start(tmp_path, TINY, "--sites", ",".join(sites), *options))
    run_dir = tmp_path / "runs" / "tiny"
    assert trained_once(run_dir) and len(tasks_done(run_dir, "local_train")) == 6
    assert nothing_left(run_dir, slurm_site, other_slurm, pbs_site.cluster)
    assert open_to_others(run_dir, *storage.glob("tiny/*")) == []
    begun = events(run_dir, "block_started")
    assert sorted(r["site"] for r in begun) == sorted(sites)  # one block each, kept over the rounds
    ended = {r["site"]: r["state"] for r in events(run_dir, "block_ended")}
    assert ended == dict.fromkeys(sites, "cancelled")
    history = {record.site: record for record in read_history(tmp_path / "history.csv")}
    assert history["perlmutter"].queue == "regular" and history["perlmutter"].walltime_s == 3600
    assert history["polaris"].scheduler == "pbs" and history["frontier"].nodes == 2
    assert all(record.submitted <= record.started <= record.ended for record in history.values())


LATE = """
import time
from apps.ranks.process_group import ProcessGroup

write = ProcessGroup.write

def late(*args, **options):
    time.sleep({seconds})
    return write(*args, **options)

ProcessGroup.write = late
"""

SLOW_SITE = """
from dataclasses import replace
from pathlib import Path
from site_configs.library.site import Site
from site_configs.local import site as local

def site(name: str, run_dir: Path) -> Site:
    return replace(local(name, run_dir), setup="export PYTHONPATH={folder}")
"""


def test_a_block_for_each_round_is_given_back(tmp_path: Path, slurm_site: SlurmCluster) -> None:
    """The other site makes the batch site wait for longer than such a block is kept without work."""
    (tmp_path / "sitecustomize.py").write_text(LATE.format(seconds=patience(12)))
    (tmp_path / "slow.py").write_text(SLOW_SITE.format(folder=tmp_path))
    batch = slurm_entry(slurm_site, tmp_path / "storage", blocks="per_round")
    entries = {"alpha": batch, "beta": {"config": str(tmp_path / "slow.py")}}
    campaign = tmp_path / "campaign.yaml"
    campaign.write_text(yaml.safe_dump(batch_campaign(entries, rounds=2)))
    finish(start(tmp_path, campaign))
    run_dir = tmp_path / "runs" / "nano"
    assert len(events(run_dir, "block_submitted")) >= 2 and trained_once(run_dir)
    assert nothing_left(run_dir, slurm_site)

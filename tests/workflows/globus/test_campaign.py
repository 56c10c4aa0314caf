"""Whole campaigns over sites that are reached through Globus: the genuine SDKs and endpoint agents, real files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from batch_sites import events, finish, nothing_left, trained_once
from campaigns import final_hash, open_to_others, run, tasks_done
from globus_campaigns import GlobusWorld, files_with, globus_world

from apps.training.shard import shard_records

if TYPE_CHECKING:
    from facilities.globus.stack import Stack

pytestmark = [pytest.mark.globus, pytest.mark.campaign]
LEAVES = r"[0-9a-f]{64}\.safetensors|[0-9a-f]{32}\.json|progress\.json"


@pytest.fixture
def world(globus: Stack, tmp_path: Path) -> Iterator[GlobusWorld]:
    globus.reset()
    with globus_world(globus, tmp_path) as made:
        yield made


def write(world: GlobusWorld, sites: dict, **changes: object) -> Path:
    path = world.root / "driver" / "campaign.yaml"
    path.write_text(yaml.safe_dump(world.campaign(sites, **changes)))
    return path


def test_two_globus_sites_and_a_local_one_give_the_model_of_three_local_ones(world: GlobusWorld) -> None:
    alone = world.root / "alone"
    alone.mkdir()
    everywhere = {name: {"config": "local"} for name in ("aurora", "frontier", "here")}
    (alone / "c.yaml").write_text(yaml.safe_dump(world.campaign(everywhere)))
    ended = run(alone, alone / "c.yaml")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sites = {"aurora": world.site("aurora"), "frontier": world.site("frontier"), "here": {"config": "local"}}
    output = finish(world.start(write(world, sites)))
    run_dir = world.root / "driver" / "runs" / "nano"
    assert final_hash(run_dir) == final_hash(alone / "runs" / "nano"), output
    assert trained_once(run_dir) and nothing_left(run_dir)
    assert len(tasks_done(run_dir, "send")) == len(tasks_done(run_dir, "fetch")) == 6
    assert {r["state"] for r in events(run_dir, "transfer_ended")} == {"SUCCEEDED"}
    kinds = [task.document["DATA_TYPE"] for task in world.transfer.tasks]
    assert kinds.count("transfer") == 12 and kinds.count("delete") == 4  # one each way, site and round
    assert files_with(world.secrets(), run_dir, *(world.root / name for name in world.sites)) == []
    first = {r["result"]["artifact"]["sha256"] for r in tasks_done(run_dir, "local_train") if r["round"] == 1}
    for name in world.sites:
        shown, private = world.root / f"{name}-exchange", world.root / name
        left = {path.relative_to(shown).parts: path for path in shown.rglob("*") if path.is_file()}
        assert {parts[:3] for parts in left} == {(way, "nano", name) for way in ("in", "out")}
        assert all(re.fullmatch(LEAVES, parts[-1]) for parts in left)
        assert not first & {path.stem for path in left.values()}  # what the server has does not stay
        assert open_to_others(private / "data", shown / "out" / "nano") == []
        assert (shown / "in" / "nano" / name).stat().st_mode & 0o077 == 0  # what Transfer writes has its own modes
        records = [record["output"].encode() for record in shard_records(next(private.rglob("shard/*.jsonl")))]
        assert not [path for path in left.values() for text in records if text in path.read_bytes()]


def test_two_sites_of_one_facility_share_what_is_sent_and_bind_late(world: GlobusWorld) -> None:
    """An asynchronous strategy asks for blocks through an endpoint; the model of a version crosses once for both."""
    entry = world.site("polaris")
    near = {**entry, "storage_root": f"{entry['storage_root']}/near"}
    far = {**entry, "storage_root": f"{entry['storage_root']}/far"}
    strategy = {"name": "fedbuff", "buffer": 2, "late_binding": True}
    output = finish(world.start(write(world, {"near": near, "far": far}, strategy=strategy, rounds=2)))
    run_dir = world.root / "driver" / "runs" / "nano"
    kinds = [r["kind"] for r in events(run_dir, "strategy_event")]
    assert kinds.count("BlockStarted") >= 2 and kinds.count("UpdateArrived") >= 4, output
    sent = [r["artifact"] for r in events(run_dir, "transfer_submitting") if r["direction"] == "send"]
    assert len(sent) == len(set(sent)) and trained_once(run_dir)
    assert [r["version"] for r in events(run_dir, "aggregated")] == [1, 2]

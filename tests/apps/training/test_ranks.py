"""Training as ranks in processes of their own: the same losses as one rank, stopped and resumed, killed together."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from patience import patience, wait_until
from training_site import PROJECT, Site, rank_at, ranks_at

from apps.artifacts.store import load_tensors, read_header
from apps.base.errors import RanksLost, TrainingError, UserMistake
from apps.ranks.processes import kept_ranks
from apps.training.progress import read_progress

pytestmark = pytest.mark.campaign

TRAINING = {"steps": 4, "batch_size": 5, "accumulate": 2, "learning_rate": 0.003}
TWO = {"ranks_per_node": 2, "micro_batch": 2}
LAYOUTS = [
    (None, {"sharding": "ddp"}),
    ("fedit", {"sharding": "ddp", "checkpoint_activations": True}),
    (None, {"sharding": "shard_grad_op", "checkpoint_activations": True}),
    ("fedit", {"sharding": "full_shard"}),
    (None, {"sharding": "full_shard", "offload": True}),
    ("fedit", {"sharding": "full_shard", "offload": True, "ranks_per_node": 1}),
]


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    """Let ranks find the project, and end those that a test leaves waiting for their next job."""
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{PROJECT / 'tests'}")
    yield
    kept_ranks().end()


def wait_for_training(site: Site) -> None:
    wait_until(lambda: (read_progress(site.root) or {"step": 0})["step"] >= 2)


def shapes(path: Path) -> dict:
    return {name: (spec.dtype, spec.shape) for name, spec in read_header(path).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """Results of one rank by method and precision."""
    found = {}
    for method in (None, "fedit"):
        site = Site(tmp_path_factory.mktemp("alone"), method)
        manifest = site.train(**TRAINING)
        found[method] = (manifest, shapes(site.update(manifest)))
    return found


@pytest.mark.parametrize(("method", "layout"), LAYOUTS)
def test_ranks_give_the_losses_of_one(method, layout, tmp_path, alone, forked):
    wanted, shapes_wanted = alone[method]
    site = Site(tmp_path, method, TWO | {"launch": forked()} | layout)
    found = site.train(**TRAINING)
    assert found["loss_first"] == pytest.approx(wanted["loss_first"], rel=1e-6)
    assert found["loss_last"] == pytest.approx(wanted["loss_last"], rel=1e-4)
    assert (found["tokens"], found["samples"]) == (wanted["tokens"], wanted["samples"])
    assert shapes(site.update(found)) == shapes_wanted
    assert site.train(**TRAINING) == found | {"reused": True}
    assert read_progress(site.root)["phase"] == "saving"
    kept_ranks().end()
    assert ranks_at(site) == []


@pytest.mark.parametrize("sharding", ["ddp", "full_shard"])
def test_mixed_precision_over_ranks(sharding, tmp_path, alone, forked):
    wanted, shapes_wanted = alone[None]
    site = Site(tmp_path, None, TWO | {"sharding": sharding, "launch": forked()})
    found = site.train(precision="bf16", **TRAINING)
    assert found["loss_first"] != wanted["loss_first"]
    assert found["loss_last"] == pytest.approx(wanted["loss_last"], rel=0.02)
    assert shapes(site.update(found)) == shapes_wanted  # the master weights are kept in full


def test_adapters_in_float32_on_a_base_in_bfloat16_can_be_sharded(tmp_path, forked):
    site = Site(tmp_path, "ffa", TWO | {"sharding": "full_shard", "launch": forked()}, dtype="bfloat16")
    update = shapes(site.update(site.train(**TRAINING)))
    assert {dtype for dtype, _ in update.values()} == {"F32"}


def test_ranks_send_the_changes_of_their_parts_in_bfloat16(tmp_path, forked):
    whole = Site(tmp_path / "one", None)
    whole.work["model"] = whole.work["model"] | {"traffic": "bfloat16"}
    alone = whole.train(**TRAINING)
    site = Site(tmp_path / "two", None, TWO | {"sharding": "full_shard", "launch": forked()})
    site.work["model"] = site.work["model"] | {"traffic": "bfloat16"}
    found = site.train(**TRAINING)
    assert found["artifact"]["kind"] == "delta"
    expected, changes = load_tensors(whole.update(alone)), load_tensors(site.update(found))
    assert {tensor.dtype for tensor in changes.values()} == {torch.bfloat16}
    for name, change in changes.items():
        torch.testing.assert_close(change.float(), expected[name].float(), rtol=0.02, atol=1e-4)
    assert len(list((site.root / "left_over").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("sharding", ["ddp", "full_shard"])
def test_ranks_stop_on_request_and_continue_with_the_same_bits(sharding, tmp_path, forked):
    changes = {"steps": 30, "keep_optimizer": True, "proximal_mu": 0.1}
    layout = {"ranks_per_node": 2, "sharding": sharding, "launch": forked()}
    whole = Site(tmp_path / "whole", "fedit", layout, dropout=0.3)
    wanted = whole.train(**changes)

    site = Site(tmp_path / "asked", "fedit", layout | {"launch": forked(slow_s=0.1)}, dropout=0.3)
    process = site.start(**changes)
    wait_for_training(site)
    process.send_signal(signal.SIGTERM)
    assert process.wait(patience(60)) == 0
    outcome = site.outcome()
    assert outcome["error"] == "Unfinished", outcome
    assert f"{site.saved_steps()[0]} of 30 steps" in outcome["text"]
    assert ranks_at(site) == []
    found = site.train(**changes)
    assert found["artifact"] == wanted["artifact"]
    assert (found["attempts"], found["loss_first"]) == (2, wanted["loss_first"])
    kept = [next((each.root / "optimizer").iterdir()).read_bytes() for each in (whole, site)]
    assert kept[0] == kept[1]


def test_the_walltime_stops_all_ranks(tmp_path, forked):
    site = Site(tmp_path, None, TWO | {"sharding": "ddp", "launch": forked(slow_s=0.3)})
    process = site.start(environment={"CROSSFED_BLOCK_END": str(time.time() + patience(6) + 35)}, steps=1000)
    assert process.wait(patience(60)) == 0
    assert site.outcome()["error"] == "Unfinished"
    assert ranks_at(site) == []


@pytest.mark.parametrize("launcher", ["forked", "torchrun"])
def test_ranks_die_together(launcher, tmp_path, forked):
    """The first launcher does not end the remaining ranks; torch's launcher starts ranks without a delay."""
    launch = forked(slow_s=0.1) if launcher == "forked" else []
    site = Site(tmp_path, None, TWO | {"sharding": "ddp", "launch": launch})
    process = site.start(steps=2000)
    wait_for_training(site)
    victim = rank_at(site, 1) if launch else next(p for p in ranks_at(site) if p.environ().get("RANK") == "1")
    victim.kill()
    assert process.wait(patience(60)) == 0
    outcome = site.outcome()
    assert outcome["error"] == "RanksLost"
    assert "site aurora, round 1: rank 1 (" in outcome["text"]
    assert f"process {victim.pid}) of 2 ended without reporting" in outcome["text"]
    assert ranks_at(site) == []


def test_no_rank_outlives_its_worker_and_the_next_attempt_continues(tmp_path, forked):
    layout = {"ranks_per_node": 2, "sharding": "full_shard", "launch": forked()}
    wanted = Site(tmp_path / "whole", None, layout).train(steps=20)
    site = Site(tmp_path / "killed", None, layout | {"launch": forked(slow_s=0.1)})
    process = site.start(steps=20, checkpoint_s=0.3)
    wait_until(lambda: max(site.saved_steps(), default=0) >= 3)
    assert len(ranks_at(site)) >= 3
    process.kill()
    process.wait()
    wait_until(lambda: ranks_at(site) == [])
    found = site.train(steps=20)
    assert found["artifact"] == wanted["artifact"]
    assert found["attempts"] == 2


def test_the_error_of_a_rank_reaches_the_worker_unchanged(tmp_path):
    site = Site(tmp_path, None, TWO | {"sharding": "ddp"})
    with pytest.raises(TrainingError, match=r"site aurora, round 1: loss is (nan|inf) at step \d+.*learning_rate"):
        site.train(steps=50, learning_rate=1e30, clip_norm=None)
    assert ranks_at(site) == []
    log = site.root / "logs" / "round-0001" / "rank-1.log"
    assert log.is_file()


def test_launchers_that_do_not_launch(tmp_path):
    site = Site(tmp_path, None, TWO | {"sharding": "ddp", "launch": ["no-such-launcher"]})
    with pytest.raises(UserMistake, match="site aurora, round 1: cannot start 'no-such-launcher'"):
        site.train()
    site.work["parallel"] = site.work["parallel"] | {"launch": ["sh", "-c", "echo 'srun: no such node' >&2; exit 3"]}
    with pytest.raises(RanksLost, match=r"0 of 2 ranks started.*code 3: srun: no such node"):
        site.train()
    site.work["parallel"] = site.work["parallel"] | {"launch": ["env"]}
    with pytest.raises(RanksLost, match="among 2 ranks"):
        site.train()


def test_several_nodes_need_sharding(tmp_path):
    site = Site(tmp_path, None, {"ranks_per_node": 2})
    with pytest.raises(UserMistake, match="site aurora, round 1: 2 ranks need sharding"):
        site.train()

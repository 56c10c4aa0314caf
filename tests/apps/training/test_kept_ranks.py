"""Ranks that stay between rounds: the bits of fresh ranks, and fresh ranks whenever the old ones cannot go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from patience import wait_until
from training_site import ENVIRONMENT, PROJECT, Site, rank_at, ranks_at

from apps.artifacts.manifests import Manifest
from apps.base.errors import RanksLost
from apps.base.identity import Place
from apps.ranks import control_line, processes
from apps.ranks.processes import kept_ranks

pytestmark = pytest.mark.campaign

TRAINING = {"steps": 3, "batch_size": 7, "keep_optimizer": True, "clip_norm": 1.0}
TOY = [sys.executable, str(PROJECT / "tests" / "toy_mpiexec.py")]


def toy(kind: str) -> list[str]:
    return [*TOY, kind, "{ranks}", "{ranks_per_node}", "0.0"]


@pytest.fixture(autouse=True)
def no_rank_is_left(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{PROJECT / 'tests'}")
    yield
    kept_ranks().end()


def rounds(site: Site, numbers: range, *, kept: bool, **changes) -> list[Manifest]:
    """Train some rounds, each from the last one's update, on the same ranks or on fresh ones."""
    done: list[Manifest] = []
    for number in numbers:
        before = done[-1] if done else None
        if before:
            site.base = site.base | {"artifact": before["artifact"], "store": site.outgoing}
        settings = TRAINING | changes
        done.append(site.train(Place(site="aurora", round=number), before and before["task_id"], **settings))
        if not kept:
            kept_ranks().end()
    return done


def pids(site: Site) -> set[int]:
    return {process.pid for process in ranks_at(site)}


@pytest.mark.parametrize(
    ("method", "layout", "kind", "launch"),
    [
        (None, {"ranks_per_node": 3, "sharding": "ddp"}, "openmpi", None),
        ("fedit", {"ranks_per_node": 2, "sharding": "full_shard", "nodes": 2}, "aurora", None),
        (None, {"ranks_per_node": 2, "sharding": "shard_grad_op"}, "srun_cray", toy("srun_cray")),
    ],
)
def test_kept_ranks_give_the_bits_of_fresh_ones(method, layout, kind, launch, tmp_path, forked):
    """The fresh ones are forks; the kept ones are started by ``launch``, if there is one, each with an interpreter."""
    layout = {"micro_batch": 2, "interface": "lo", "launch": forked(kind)} | layout
    layouts = {"a": layout if launch is None else layout | {"launch": launch}, "b": layout}
    options = {"dropout": 0.3} if method else {}
    kept, fresh = (Site(tmp_path / name, method, layouts[name], **options) for name in "ab")
    found = rounds(kept, range(1, 3), kept=True)
    ranks = pids(kept)
    kept.base = kept.base | {"artifact": found[-1]["artifact"], "store": kept.outgoing}
    found.append(kept.train(Place(site="aurora", round=3), found[-1]["task_id"], **TRAINING))
    assert pids(kept) == ranks
    wanted = rounds(fresh, range(1, 4), kept=False)
    assert pids(fresh) == set()
    assert [each["artifact"] for each in found] == [each["artifact"] for each in wanted]
    assert [each["attempts"] for each in found] == [1, 1, 1]


TWO = {"ranks_per_node": 2, "sharding": "full_shard", "micro_batch": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, forked) -> Manifest:
    """The second of two rounds, each on ranks of its own."""
    site = Site(tmp_path_factory.mktemp("whole"), None, TWO | {"launch": forked()})
    return rounds(site, range(1, 3), kept=False)[1]


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda s: s.name)
def test_a_rank_that_is_gone_or_hangs_while_it_waits_costs_no_attempt(what, tmp_path, monkeypatch, forked, undisturbed):
    monkeypatch.setattr(processes, "READY_S", 3.0)
    site = Site(tmp_path / "site", None, TWO | {"launch": forked("mpich")})
    first = rounds(site, range(1, 2), kept=True)
    before = pids(site)
    rank_at(site, 1).send_signal(what)
    site.base = site.base | {"artifact": first[0]["artifact"], "store": site.outgoing}
    found = site.train(Place(site="aurora", round=2), first[0]["task_id"], **TRAINING)
    assert found["artifact"] == undisturbed["artifact"]
    assert found["attempts"] == 1
    assert not before & pids(site)


def test_another_plan_gets_other_ranks(tmp_path, forked):
    site = Site(tmp_path, None, TWO | {"launch": forked()})
    rounds(site, range(1, 2), kept=True)
    before = pids(site)
    rounds(site, range(1, 2), kept=True, precision="bf16")
    assert not before & pids(site)


def test_ranks_that_wait_use_no_processor_and_end_with_their_worker(tmp_path):
    site = Site(tmp_path, None, TWO)
    program = f"import sys, time; from training_site import main, Path; main(Path({str(tmp_path / 'job.json')!r}))"
    site.command(**TRAINING)
    worker = subprocess.Popen([sys.executable, "-c", f"{program}; time.sleep(600)"], env={**os.environ, **ENVIRONMENT})
    wait_until(site.outcome_path.exists, 120)
    time.sleep(1)
    ranks = [p for p in ranks_at(site) if "apps.rank" in p.cmdline()]
    before = [sum(p.cpu_times()[:2]) for p in ranks]
    time.sleep(2)
    spent = [sum(p.cpu_times()[:2]) - b for p, b in zip(ranks, before, strict=True)]
    assert len(ranks) >= 2
    assert max(spent) < 0.2, spent
    worker.kill()
    worker.wait()
    wait_until(lambda: ranks_at(site) == [])


def test_a_rank_that_hangs_in_training_is_found(tmp_path, monkeypatch, forked):
    """Its worker does not wait for the collectives' own limit, and the next attempt continues."""
    monkeypatch.setattr(processes, "SILENCE_S", 5.0)
    monkeypatch.setattr(control_line, "PING_S", 0.5)
    site = Site(tmp_path, None, TWO | {"launch": forked("mpich", 0.2)})
    rounds(site, range(1, 2), kept=True)
    victim = rank_at(site, 1)
    freezer = subprocess.Popen(["sh", "-c", f"sleep 3; kill -STOP {victim.pid}"])
    with pytest.raises(RanksLost, match=rf"rank 1 \(.*process {victim.pid}\) of 2 has not answered for 5 s"):
        site.train(Place(site="aurora", round=2), steps=30, checkpoint_s=0.5)
    freezer.wait()
    wait_until(lambda: ranks_at(site) == [])
    assert site.train(Place(site="aurora", round=2), steps=30, checkpoint_s=300.0)["attempts"] == 2

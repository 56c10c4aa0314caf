"""Evaluation on ranks: the losses of one process, on the ranks that have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_site import PROJECT, Site, data_spec, ranks_at

from apps.aggregate import aggregate
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.base.errors import ArtifactError
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.evaluate import evaluate
from apps.ranks.processes import kept_ranks

pytestmark = pytest.mark.campaign
PLACE = Place(site="evaluator", round=1)
TASKS = ["forward_synthesis", "molecule_generation"]
TWO = {"ranks_per_node": 2, "micro_batch": 2}


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let ranks find the project, and end those that wait for their next job."""
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{PROJECT / 'tests'}")
    yield
    kept_ranks().end()


def work(site: Site) -> Any:
    data = data_spec(tasks=TASKS, per_task=5)
    return {
        "store": site.store,
        "model": site.work["model"],
        "data": data,
        "split": "test",
        "code_version": code_version(),
    }


def settings(site: Site, **changes: Any) -> Any:
    alone = {"batch_size": 2, "threads": 1, "device": "cpu", "precision": "no", "parallel": None, "source": ""}
    return {**alone, "root": str(site.root), **changes}


def moved(site: Site, seed: int) -> dict[str, Any]:
    """Return an update of the site's model by noise, in the server's store."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_tensors(artifact_path(site.store, site.base["artifact"]))
    update = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    return {"artifact": save_tensors(site.store, update, "update")}


@pytest.mark.parametrize(("method", "sharding"), [(None, "ddp"), (None, "full_shard"), ("fedex", "full_shard")])
def test_ranks_give_the_losses_of_one_process(method: str | None, sharding: str, tmp_path: Path, forked: Any) -> None:
    """Five batches on two ranks, so that one has to wait for the other; what is merged into W0 counts."""
    site = Site(tmp_path, method, TWO | {"sharding": sharding, "launch": forked()})
    server = {"store": site.store, "model": site.work["model"], "threads": 1, "code_version": code_version()}
    updates = [moved(site, seed) for seed in (1, 2)]
    model = aggregate(Place(site="server", round=1), server, site.base, [0.5, 0.5], 1, None, *updates)  # type: ignore[arg-type]
    site.train(batch_size=4)
    before = {process.pid for process in ranks_at(site)}
    one = updates[0] | ({"base": model["artifact"]} if method else {})

    def losses(**changes: Any) -> list[dict[str, Any]]:
        return [evaluate(PLACE, work(site), c, "any", at=settings(site, **changes))["tasks"] for c in (model, one)]

    found = losses(parallel=site.work["parallel"])
    assert {process.pid for process in ranks_at(site)} == before  # those that have trained
    kept_ranks().end()
    alone = losses()
    assert found[0] != found[1]
    for mine, wanted in zip(found, alone, strict=True):
        assert mine.keys() == wanted.keys() == set(TASKS)
        for task, expected in wanted.items():
            assert mine[task]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert mine[task]["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-4)
            assert (mine[task]["samples"], mine[task]["tokens"]) == (expected["samples"], expected["tokens"])


def test_a_damaged_model_is_refused_on_ranks_too(tmp_path: Path, forked: Any) -> None:
    site = Site(tmp_path, None, TWO | {"sharding": "full_shard", "launch": forked()})
    candidate = moved(site, 1)
    path = artifact_path(site.store, candidate["artifact"])
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ArtifactError, match=r"^evaluation, round 1: .*SHA-256"):
        evaluate(PLACE, work(site), candidate, "global", at=settings(site, parallel=site.work["parallel"]))

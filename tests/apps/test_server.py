"""The tasks of the server, run in this process."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from apps import server
from apps.aggregate import aggregate
from apps.artifacts.lora import METHODS, is_trained
from apps.artifacts.store import artifact_path, load_tensors, save_tensors, verify
from apps.base.errors import ArtifactError, StorageError, TaskError, VersionMismatch
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.models.model import load_model
from apps.server import prepare, save_model

PLACE = Place(site="server", round=1)


def work(store: Path, method: str | None = None, **changes) -> server.ServerWork:
    adapter = {
        "method": method,
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.0,
        "targets": ["q_proj", "down_proj"],
        "last_layers": None,
    }
    model = {
        "source": "tiny",
        "dtype": "float32",
        "seed": 1,
        "adapter": adapter if method else None,
        "tiny": {"width": 32, "layers": 1},
    }
    return {"store": str(store), "model": model, "threads": 1, "code_version": code_version()} | changes


def update_of(store: Path, model: dict, method: str, seed: int) -> dict:
    """What a site's stage-in would give: the trained tensors moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_tensors(artifact_path(store, model["artifact"]))
    moved = {
        n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items() if is_trained(n, method)
    }
    return {"artifact": save_tensors(store, moved, "update")}


def test_prepare_tells_the_sizes(tmp_path):
    full, adapted = prepare(PLACE, work(tmp_path)), prepare(PLACE, work(tmp_path, "fedit"))
    assert full["parameters"] == full["trainable"] == full["full_nbytes"] // 4
    assert adapted["trainable"] < full["trainable"] < adapted["parameters"]
    assert adapted["full_nbytes"] == full["full_nbytes"]
    assert (full["artifact"]["kind"], adapted["artifact"]["kind"]) == ("model", "adapter")
    for result in (full, adapted):
        assert verify(result["store"], result["artifact"])
    assert prepare(PLACE, work(tmp_path))["artifact"] == full["artifact"]


@pytest.mark.parametrize("method", [None, "flora"])
def test_prepare_does_not_start_from_what_a_warm_worker_was_trained_to(method, tmp_path):
    given = work(tmp_path, method)
    first = prepare(PLACE, given)["artifact"]
    model = load_model(given["model"])
    with torch.no_grad():
        for tensor in model.state.values():
            tensor.add_(1.0)
    assert prepare(PLACE, given)["artifact"] == first


def test_aggregate_of_whole_models_is_their_mean(tmp_path):
    base = prepare(PLACE, work(tmp_path))
    updates = [update_of(tmp_path, base, "full", seed) for seed in (1, 2)]
    result = aggregate(PLACE, work(tmp_path), base, [0.25, 0.75], 1, None, *updates)
    one, two, mean = (load_tensors(artifact_path(tmp_path, r["artifact"])) for r in (*updates, result))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.25 * one[name] + 0.75 * two[name])
    assert (result["version"], result["store"]) == (1, str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_rounds_of_every_method_give_a_model_that_can_be_set_and_saved(method, tmp_path):
    given = work(tmp_path / "store", method)
    model, seen = prepare(PLACE, given), set()
    for version in (1, 2):
        updates = [update_of(tmp_path / "store", model, method, 10 * version + k) for k in (1, 2)]
        model = aggregate(Place(site="server", round=version), given, model, [0.5, 0.5], version, None, *updates)
        seen.add(model["artifact"]["sha256"])
    assert len(seen) == 2
    saved = save_model(PLACE, given, model, str(tmp_path / "model"))
    loaded = AutoModelForCausalLM.from_pretrained(saved["folder"])
    assert torch.isfinite(loaded(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_aggregate_is_the_same_for_the_same_input_and_restarts_by_version(tmp_path):
    given = work(tmp_path, "flora")
    base = prepare(PLACE, given)
    updates = [update_of(tmp_path, base, "flora", k) for k in (1, 2)]
    hashes = [aggregate(PLACE, given, base, [0.5, 0.5], v, None, *updates)["artifact"]["sha256"] for v in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_aggregate_refuses_what_is_not_whole(tmp_path):
    base = prepare(PLACE, work(tmp_path))
    update = update_of(tmp_path, base, "full", 1)
    path = artifact_path(tmp_path, update["artifact"])
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ArtifactError, match=r"^server, round 1: .*SHA-256"):
        aggregate(PLACE, work(tmp_path), base, [1.0], 1, None, update)


def test_weights_and_updates_go_together(tmp_path):
    base = prepare(PLACE, work(tmp_path))
    with pytest.raises(TaskError, match="longer"):
        aggregate(PLACE, work(tmp_path), base, [0.5, 0.5], 1, None, update_of(tmp_path, base, "full", 1))


def test_other_code_is_refused(tmp_path):
    base = prepare(PLACE, work(tmp_path))
    other = work(tmp_path, code_version="other")
    for act in (
        lambda: prepare(PLACE, other),
        lambda: aggregate(PLACE, other, base, [1.0], 1, None, base),
        lambda: save_model(PLACE, other, base, str(tmp_path / "model")),
    ):
        with pytest.raises(VersionMismatch, match="^server, round 1"):
            act()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def saved(tmp_path) -> tuple[dict, dict, Path]:
    """A model in a store, saved once, and another to be saved in its place."""
    first = prepare(PLACE, work(tmp_path / "store"))
    folder = tmp_path / "run" / "model"
    save_model(PLACE, work(tmp_path / "store"), first, str(folder))
    return first, update_of(tmp_path / "store", first, "full", 1), folder


def test_saved_model_is_replaced_whole(saved, tmp_path):
    first, second, folder = saved
    before = snapshot(folder)
    save_model(PLACE, work(tmp_path / "store"), second, str(folder))
    after = snapshot(folder)
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    save_model(PLACE, work(tmp_path / "store"), first, str(folder))
    assert snapshot(folder) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("bug")])
def test_failure_midway_leaves_the_old_model(error, saved, tmp_path, monkeypatch):
    _, second, folder = saved
    before = snapshot(folder)

    def half(spec, path, unfinished):
        unfinished.mkdir()
        (unfinished / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(server, "write_final_model", half)
    expected = StorageError if isinstance(error, OSError) else TaskError
    with pytest.raises(
        expected, match=r"^server, round 1: cannot write: No space left" if expected is StorageError else "bug"
    ):
        save_model(PLACE, work(tmp_path / "store"), second, str(folder))
    assert snapshot(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_full_disk_leaves_the_old_model(saved, tmp_path):
    """A disk that is really full; the library that writes the weights has an error of its own for it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    first, second, folder = saved
    need = sum(p.stat().st_size for p in folder.iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={need * 3 // 2}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let a small disk be mounted")
    try:
        save_model(PLACE, work(tmp_path / "store"), first, str(disk / "model"))
        before = snapshot(disk / "model")
        with pytest.raises(StorageError, match=r"^server, round 1: .*No space left") as caught:
            save_model(PLACE, work(tmp_path / "store"), second, str(disk / "model"))
        assert caught.value.file == str(disk / "model")
        assert snapshot(disk / "model") == before
        assert [p.name for p in disk.iterdir()] == ["model"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_leftovers_of_a_killed_save_do_not_get_in(saved, tmp_path):
    first, _, folder = saved
    before = snapshot(folder)
    for suffix in (".part", ".old"):
        leftover = folder.with_name(f"model{suffix}")
        leftover.mkdir()
        (leftover / "junk").touch()
    save_model(PLACE, work(tmp_path / "store"), first, str(folder))
    assert snapshot(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_damaged_artifact_is_not_saved(saved, tmp_path):
    _, second, folder = saved
    before = snapshot(folder)
    path = artifact_path(tmp_path / "store", second["artifact"])
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ArtifactError, match="SHA-256"):
        save_model(PLACE, work(tmp_path / "store"), second, str(folder))
    assert snapshot(folder) == before

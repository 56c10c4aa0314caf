"""The apps of a site, run in this process: enrolled once, trained once, answered from the manifest afterwards."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_site import PARALLEL, PLACE, PROJECT, TRAINING, Site, data_spec, model_spec

from apps.artifacts.manifests import find_manifest, manifest_path
from apps.artifacts.store import artifact_path, load_tensors, save_tensors, verify
from apps.base.errors import ArtifactError, StorageError, TrainingError, UserMistake, VersionMismatch
from apps.base.identity import Place
from apps.train import enrol
from apps.training.progress import read_progress
from apps.training.task import task_identity
from apps.transfer import stage_in


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path)


def test_enrolling_reports_the_shard_and_the_host(site):
    shard = site.shard
    assert (shard["samples"], shard["per_task"]) == (6, {"forward_synthesis": 6})
    assert (site.root / "shard" / f"{shard['shard_sha256']}.jsonl").is_file()
    assert shard["libraries"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # +cu130: the build
    assert shard["free_bytes"] > 0
    assert json.loads((site.root / "site.json").read_text())["site"] == "aurora"
    assert enrol(PLACE, site.work)["shard_sha256"] == shard["shard_sha256"]


@pytest.mark.parametrize(
    ("data", "named"), [({"source": "/no/such/data"}, "/no/such/data"), ({"tasks": ["alchemy"]}, "alchemy")]
)
def test_enrolling_without_records_is_the_users_mistake(data, named, site):
    with pytest.raises(UserMistake, match=f"site aurora.*{named}"):
        enrol(PLACE, site.work | {"data": data_spec(**data)})


def test_enrolling_where_nothing_can_be_written(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="site aurora: cannot write"):
        enrol(PLACE, site.work | {"root": str(tmp_path / "file" / "root")})


def test_training_end_to_end(site):
    manifest = site.train()
    assert (manifest["site"], manifest["round"], manifest["reused"]) == ("aurora", 1, False)
    assert (manifest["steps_done"], manifest["steps_asked"], manifest["samples"], manifest["shard_samples"]) == (
        2,
        2,
        4,
        6,
    )
    assert manifest["base"] == site.base["artifact"]["sha256"]
    assert manifest["tokens"] > 0
    assert (manifest["optimizer"], manifest["attempts"]) == ("fresh", 1)
    assert list((site.root / "checkpoints").iterdir()) == []
    assert manifest["store"] == site.outgoing
    assert verify(site.outgoing, manifest["artifact"]) == site.update(manifest)
    assert find_manifest(site.root, manifest["task_id"], Path(site.outgoing)) == manifest
    assert {path.name for path in Path(site.outgoing).iterdir()} == {
        f"{manifest['artifact']['sha256']}.safetensors",
        f"{manifest['task_id']}.json",
    }
    progress = read_progress(site.root)
    assert (progress["phase"], progress["step"], progress["round"]) == ("saving", 2, 1)
    rules = {"method": "full", "max_update_norm": None}
    result = stage_in(PLACE, manifest, site.base, site.outgoing, site.store, rules)
    assert 0 < result["update_norm"] < 10
    assert not list(site.root.rglob("*part*"))


def test_second_call_answers_from_the_manifest(site, monkeypatch):
    first = site.train()
    before = site.update(first).stat()
    monkeypatch.setattr("apps.training.attempt.train", lambda *_: pytest.fail("trained again"))
    again = site.train()
    assert again == first | {"reused": True}
    after = site.update(first).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("spoil", ["altered", "cut", "gone", "manifest"])
def test_damaged_update_is_trained_again_with_the_same_bits(spoil, site):
    first = site.train()
    path = site.update(first)
    content = path.read_bytes()
    if spoil == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif spoil == "cut":
        path.write_bytes(content[:-5])
    elif spoil == "gone":
        path.unlink()
    else:
        manifest_path(site.root / "manifests", first["task_id"]).write_text("{}")
    again = site.train()
    assert again["reused"] is False
    assert again["task_id"] == first["task_id"]
    assert again["artifact"] == first["artifact"]
    assert path.read_bytes() == content


def test_other_work_has_another_identity(site):
    def name(place: Place = PLACE, optimizer_from: str | None = None, attempt: int = 1, **changes: Any) -> str:
        training = {k: v for k, v in changes.items() if k in TRAINING}
        work = site.work | {k: v for k, v in changes.items() if k in site.work}
        base = {"artifact": {"sha256": changes.get("base", "b")}}
        shard = {"shard_sha256": changes.get("shard", "s")}
        request = {"training": TRAINING | training, "optimizer_from": optimizer_from, "attempt": attempt}
        return task_identity(place, work, request, base, shard)

    same = [
        name(),
        name(attempt=2),
        name(root="/elsewhere"),
        name(data=data_spec(source="/elsewhere")),
        name(checkpoint_s=1.0),
        name(on_walltime="return"),
        name(parallel=PARALLEL | {"launch": ["srun"]}),
    ]
    others = [
        name(Place(site="aurora", round=2)),
        name(Place(site="frontier", round=1)),
        name(optimizer_from="t"),
        name(steps=3),
        name(learning_rate=0.02),
        name(seed=4),
        name(threads=2),
        name(code_version="x"),
        name(base="c"),
        name(shard="t"),
        name(model=model_spec("fedit")),
        name(data=data_spec(max_tokens=50)),
        name(parallel=PARALLEL | {"ranks_per_node": 2}),
        name(parallel=PARALLEL | {"micro_batch": 1}),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_storage_that_was_moved_answers_with_where_it_is_now(site, tmp_path):
    first = site.train()
    moved = tmp_path / "moved"
    shutil.move(site.root, moved)
    site.work = site.work | {"root": str(moved), "out": f"{moved}/out"}
    again = site.train()
    assert again["reused"]
    assert again["store"] == f"{moved}/out"
    verify(again["store"], first["artifact"])


def test_other_code_is_refused(site):
    site.work = site.work | {"code_version": "0123456789abcdef"}
    with pytest.raises(VersionMismatch, match=r"site aurora.*0123456789abcdef.*same commit"):
        site.train()
    with pytest.raises(VersionMismatch, match="site aurora"):
        enrol(PLACE, site.work)


@pytest.mark.parametrize("folder", ["artifacts", "manifests", "optimizer", "shard", "checkpoints"])
def test_storage_that_leads_outside_the_root_is_refused(folder, site, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(site.root / folder, ignore_errors=True)
    (site.root / folder).symlink_to(outside)
    with pytest.raises((StorageError, UserMistake), match=r"site aurora.*outside"):
        site.train(learning_rate=0.02, keep_optimizer=True)
    assert list(outside.iterdir()) == []


def test_base_model_that_is_not_whole_is_refused(site):
    path = artifact_path(site.incoming, site.base["artifact"])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\7")
    with pytest.raises(ArtifactError, match="site aurora, round 1"):
        site.train()


def test_a_model_that_others_may_change_is_copied_and_one_in_the_own_storage_is_linked(site, tmp_path):
    expected = site.train()["artifact"]
    neighbour = tmp_path / "neighbour"
    own, sent = (artifact_path(s, site.base["artifact"]) for s in (site.root / "artifacts", site.incoming))
    assert own.samefile(sent)
    own.unlink()
    Path(site.incoming).rename(neighbour)
    shutil.rmtree(site.root / "manifests")
    site.base = {**site.base, "store": str(neighbour)}
    assert site.train()["artifact"] == expected
    other = artifact_path(neighbour, site.base["artifact"])
    assert own.read_bytes() == other.read_bytes() and not own.samefile(other)
    other.write_bytes(b"changed by whoever writes there")
    assert site.train(learning_rate=0.02)["steps_done"] == 2


def test_only_updates_and_manifests_lie_where_others_read(tmp_path):
    """Folders of a guest collection beside the private root, and what the server has fetched is deleted by the site."""
    site = Site(tmp_path)
    shared = tmp_path / "shown"
    site.outgoing = str(shared / "out" / "run" / "aurora")
    site.work = site.work | {"out": site.outgoing, "shared": str(shared)}
    site.shard = enrol(PLACE, site.work)
    first = site.train(keep_optimizer=True, checkpoint_s=0.0)
    own = {f"{first['artifact']['sha256']}.safetensors", f"{first['task_id']}.json", "progress.json"}
    assert {path.name for path in shared.rglob("*") if path.is_file()} == own
    site.base = site.base | {"fetched": ["0" * 64, first["artifact"]["sha256"]]}
    second = site.train(Place(site="aurora", round=2))
    own = {f"{second['artifact']['sha256']}.safetensors", f"{second['task_id']}.json", "progress.json"}
    assert {path.name for path in shared.rglob("*") if path.is_file()} == own
    assert {path.stem for path in (site.root / "manifests").iterdir()} == {first["task_id"], second["task_id"]}


@pytest.mark.parametrize("what", ["storage_root", "link", "data", "model", "Python", "project", "out"])
def test_a_site_refuses_to_write_where_others_read(what, site, tmp_path):
    """The site checks what it reads and writes, with links followed, whatever the campaign has checked."""
    shared = tmp_path / "shown"
    shared.mkdir()
    (tmp_path / "link").symlink_to(shared)
    work = site.work | {"shared": str(shared), "out": str(shared / "out")}
    changes = {
        "storage_root": {"root": str(shared / "site")},
        "link": {"root": str(tmp_path / "link" / "site")},
        "data": {"data": data_spec(source=str(tmp_path / "link"))},
        "model": {"model": model_spec() | {"source": str(shared / "model")}},
        "Python": {"shared": sys.prefix},
        "project": {"shared": str(PROJECT / "apps")},  # the environment may lie in the project too
        "out": {"out": str(site.root / "shard")},
    }
    site.work = work | changes[what]
    named = {"link": "storage_root", "out": "updates are written to"}.get(what, what)
    for call in (lambda: enrol(PLACE, site.work), site.train):
        with pytest.raises(UserMistake, match=f"site aurora.*{named}"):
            call()
    assert not list(shared.rglob("*"))


def test_base_of_another_model_is_refused(site):
    site.base = site.base | {"artifact": save_tensors(site.incoming, {"x": torch.zeros(1)}, "model")}
    with pytest.raises(ArtifactError, match=r"site aurora, round 1: artifact belongs to another model"):
        site.train()


def test_loss_that_is_not_finite_names_the_place(site):
    broken = {n: t + float("nan") for n, t in load_tensors(artifact_path(site.incoming, site.base["artifact"])).items()}
    site.base = site.base | {"artifact": save_tensors(site.incoming, broken, "model")}
    with pytest.raises(TrainingError, match=r"site aurora, round 1: loss is nan at step 1"):
        site.train()
    assert not (site.root / "manifests").exists()


def test_records_that_changed_since_enrolment_are_refused(site):
    site.shard = site.shard | {"shard_sha256": "0" * 64}
    with pytest.raises(UserMistake, match=r"site aurora, round 1: the site's records have changed"):
        site.train()


def test_rounds_and_sites_see_samples_in_another_order(site):
    hashes = {
        site.train(Place(site=name, round=number))["artifact"]["sha256"]
        for name in ("aurora", "frontier")
        for number in (1, 2)
    }
    assert len(hashes) == 4


def test_optimiser_is_carried_lost_or_fresh(site):
    two = Place(site="aurora", round=2)
    first = site.train(keep_optimizer=True)
    carried = site.train(two, first["task_id"], keep_optimizer=True)
    fresh = site.train(two, None, keep_optimizer=True)
    assert (first["optimizer"], carried["optimizer"], fresh["optimizer"]) == ("fresh", "carried", "fresh")
    assert carried["artifact"]["sha256"] != fresh["artifact"]["sha256"]
    kept = site.root / "optimizer" / f"{first['task_id']}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-10])
    manifest_path(site.root / "manifests", carried["task_id"]).unlink()
    lost = site.train(two, first["task_id"], keep_optimizer=True)
    assert lost["optimizer"] == "lost"
    assert lost["artifact"] == fresh["artifact"]
    assert site.train(two, "never-heard-of")["optimizer"] == "lost"
    kept_states = {p.stem for p in (site.root / "optimizer").iterdir()}
    assert kept_states == {first["task_id"], carried["task_id"]}  # older ones are of no more use


def test_optimiser_of_elsewhere_is_refused(site):
    with pytest.raises(StorageError, match="outside"):
        site.train(optimizer_from="../../server/x")


@pytest.mark.parametrize("method", ["fedit", "ffa"])
def test_adapter_updates_hold_what_is_trained(method, tmp_path):
    site = Site(tmp_path, method)
    update = load_tensors(site.update(site.train()))
    sides = {name.split(".lora_")[1][0] for name in update}
    assert sides == ({"B"} if method == "ffa" else {"A", "B"})
    assert all(t.any() for t in update.values())


def test_progress_that_cannot_be_written_does_not_end_training(site):
    (site.root / "progress.json").mkdir()
    assert site.train()["steps_done"] == 2


def test_an_adapter_is_not_trained_on_another_checkpoint(tmp_path):
    site = Site(tmp_path, "fedit")
    assert len(site.base["frozen"]) == 64
    assert site.train()["steps_done"] > 0
    site.base = {**site.base, "frozen": "0" * 64}
    with pytest.raises(VersionMismatch, match="another checkpoint than that of the server"):
        site.train(learning_rate=0.5)

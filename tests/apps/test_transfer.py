"""What moves is verified where it arrives, and an update is checked before it counts."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from apps import transfer
from apps.artifacts.store import artifact_path, save_tensors, verify
from apps.base.errors import ArtifactError, StorageError, UpdateRefused
from apps.base.identity import Place
from apps.transfer import move, stage_in, stage_out

PLACE = Place(site="aurora", round=2)
RULES = {"method": "full", "max_update_norm": None}


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "server"), str(tmp_path / "site")


def model_in(store: str, value: float = 1.0) -> dict:
    return {"artifact": save_tensors(store, {"w": torch.full((1000,), value)}, "model")}


def damage(store: str, artifact: dict) -> None:
    """One bit, the size unchanged."""
    path = artifact_path(store, artifact)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_stage_out_moves_once(stores):
    server, site = stores
    model = model_in(server)
    first = stage_out(PLACE, model, server, site)
    assert first["nbytes_moved"] == model["artifact"]["nbytes"]
    assert (first["artifact"], first["store"]) == (model["artifact"], site)
    assert first["started"] <= first["ended"]
    assert verify(site, model["artifact"]).parent == Path(site)
    assert stage_out(PLACE, model, server, site)["nbytes_moved"] == 0


@pytest.mark.parametrize("spoil", [damage, lambda store, a: artifact_path(store, a).write_bytes(b"short")])
def test_damaged_destination_is_fetched_again(spoil, stores):
    server, site = stores
    model = model_in(server)
    stage_out(PLACE, model, server, site)
    spoil(site, model["artifact"])
    assert stage_out(PLACE, model, server, site)["nbytes_moved"] == model["artifact"]["nbytes"]
    verify(site, model["artifact"])


@pytest.mark.parametrize("spoil", [damage, lambda store, a: artifact_path(store, a).unlink()])
def test_damaged_source_is_an_artifact_error_with_its_place(spoil, stores):
    server, site = stores
    model = model_in(server)
    spoil(server, model["artifact"])
    with pytest.raises(ArtifactError) as caught:
        stage_out(PLACE, model, server, site)
    assert (caught.value.site, caught.value.round) == ("aurora", 2)
    assert caught.value.file == str(artifact_path(server, model["artifact"]))
    assert not artifact_path(site, model["artifact"]).exists()


def test_whole_destination_does_not_need_the_source(stores):
    server, site = stores
    model = model_in(server)
    stage_out(PLACE, model, server, site)
    shutil.rmtree(server)
    assert stage_out(PLACE, model, server, site)["nbytes_moved"] == 0


def test_copy_that_goes_wrong_is_repeated(stores, monkeypatch):
    server, site = stores
    model = model_in(server)
    calls = []

    def bad_at_first(path):
        content = path.read_bytes()
        calls.append(len(content))
        return [content if len(calls) == 3 else content[:-1] + b"\7"]

    monkeypatch.setattr(transfer, "_pieces", bad_at_first)
    assert move(model["artifact"], server, site) == model["artifact"]["nbytes"]
    assert len(calls) == 3


def test_copy_that_always_goes_wrong_is_given_up(stores, monkeypatch):
    server, site = stores
    model = model_in(server)
    monkeypatch.setattr(transfer, "_pieces", lambda _path: [b"junk"])
    with pytest.raises(ArtifactError, match=r"site aurora, round 2: the copy was damaged 3 times.*Check the disk"):
        stage_out(PLACE, model, server, site)


def test_full_disk_says_which_site(stores, monkeypatch):
    server, site = stores
    model = model_in(server)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"site aurora, round 2: cannot write: No space left") as caught:
        stage_out(PLACE, model, server, site)
    assert caught.value.file == str(artifact_path(site, model["artifact"]))
    assert list(Path(site).iterdir()) == []


def staged(server: str, site: str, value: float = 1.5) -> tuple[dict, dict]:
    base = stage_out(PLACE, model_in(server), server, site)
    update = model_in(site, value)["artifact"]
    manifest = {
        "task_id": "0123456789abcdef" * 2,
        "site": "aurora",
        "round": 2,
        "base": base["artifact"]["sha256"],
        "artifact": update,
        "started": base["ended"] + 3,
    }
    return manifest, base


def test_stage_in_moves_checks_and_reports(stores):
    server, site = stores
    manifest, base = staged(server, site)
    result = stage_in(PLACE, manifest, base, site, server, RULES)
    assert result["nbytes_moved"] == manifest["artifact"]["nbytes"]
    assert result["update_norm"] == pytest.approx(0.5 * math.sqrt(1000))
    assert result["wait_s"] == pytest.approx(3)
    assert (result["artifact"], result["base"], result["store"]) == (manifest["artifact"], base["artifact"], server)
    assert result["manifest"] == manifest
    verify(server, manifest["artifact"])
    assert stage_in(PLACE, manifest, base, site, server, RULES)["nbytes_moved"] == 0


def test_a_refused_name_leaves_the_file_of_somebody_else(stores):
    """A site names the global model as its update: the server's own file is not deleted with the refusal."""
    server, site = stores
    manifest, base = staged(server, site)
    with pytest.raises(UpdateRefused, match="norm"):
        own = manifest | {"artifact": base["artifact"]}
        stage_in(PLACE, own, base, site, server, RULES | {"max_update_norm": -1.0})
    verify(server, base["artifact"])


@pytest.mark.parametrize("absolute", [False, True])
def test_a_manifest_cannot_name_a_file_elsewhere(absolute, stores, tmp_path):
    """A name that leads to a model of the user: refused before the file is looked at."""
    server, site = stores
    manifest, base = staged(server, site)
    victim = tmp_path / "home" / "models" / "model.safetensors"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"of the user")
    name = str(victim.with_suffix("")) if absolute else os.path.relpath(victim.with_suffix(""), site)
    named = manifest | {"artifact": {"sha256": name, "nbytes": 11, "kind": "update"}}
    with pytest.raises(UpdateRefused, match="site aurora, round 2: update refused: .* is no name of an artifact"):
        stage_in(PLACE, named, base, site, server, RULES)
    assert [path.name for path in victim.parent.iterdir()] == ["model.safetensors"]


def test_an_update_larger_than_the_model_is_not_copied(stores):
    server, site = stores
    manifest, base = staged(server, site)
    large = save_tensors(site, {"w": torch.zeros(100_000)}, "update")
    with pytest.raises(UpdateRefused, match="it has 4000[0-9]{2} bytes, an update of this model at most"):
        stage_in(PLACE, manifest | {"artifact": large}, base, site, server, RULES)
    assert not artifact_path(server, large).exists()


def test_wait_is_never_negative(stores):
    server, site = stores
    manifest, base = staged(server, site)
    assert stage_in(PLACE, manifest | {"started": 0.0}, base, site, server, RULES)["wait_s"] == 0.0


@pytest.mark.parametrize("spoil", [damage, lambda store, a: artifact_path(store, a).unlink()])
def test_update_that_is_damaged_at_the_site_is_an_artifact_error(spoil, stores):
    """The driver then repeats the training; after a refusal it would not."""
    server, site = stores
    manifest, base = staged(server, site)
    spoil(site, manifest["artifact"])
    with pytest.raises(ArtifactError, match="site aurora, round 2"):
        stage_in(PLACE, manifest, base, site, server, RULES)


def test_update_that_breaks_a_rule_is_refused_after_the_move(stores):
    server, site = stores
    manifest, base = staged(server, site, math.nan)
    with pytest.raises(UpdateRefused, match=r"values that are not finite in tensor 'w': 1,000") as caught:
        stage_in(PLACE, manifest, base, site, server, RULES)
    assert (caught.value.site, caught.value.round) == ("aurora", 2)
    assert not artifact_path(server, manifest["artifact"]).exists()  # what is refused does not stay
    with pytest.raises(UpdateRefused, match="norm"):
        stage_in(PLACE, *staged(server, site), site, server, RULES | {"max_update_norm": 1.0})


def test_a_file_that_grows_while_it_is_copied_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_pieces", lambda _path: iter(lambda: bytes(8), b""))
    transfer._copy(tmp_path / "from", tmp_path / "to", 10)
    assert (tmp_path / "to").stat().st_size == 16


def test_a_link_moves_no_bytes_and_is_verified(stores):
    server, site = stores
    model = model_in(server)
    assert stage_out(PLACE, model, server, site, True)["nbytes_moved"] == 0
    assert verify(site, model["artifact"]).samefile(artifact_path(server, model["artifact"]))
    assert [path.name for path in Path(site).iterdir()] == [f"{model['artifact']['sha256']}.safetensors"]
    assert stage_out(PLACE, model, server, site, True)["nbytes_moved"] == 0


def test_a_damaged_destination_is_replaced_by_a_link(stores):
    server, site = stores
    model = model_in(server)
    stage_out(PLACE, model, server, site)
    damage(site, model["artifact"])
    stage_out(PLACE, model, server, site, True)
    assert verify(site, model["artifact"]).stat().st_nlink == 2
    verify(server, model["artifact"])


def test_a_damaged_source_is_not_linked(stores):
    server, site = stores
    model = model_in(server)
    damage(server, model["artifact"])
    with pytest.raises(ArtifactError, match="site aurora, round 2"):
        stage_out(PLACE, model, server, site, True)
    assert not artifact_path(site, model["artifact"]).exists()


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_without_hard_links_it_is_copied(stores, monkeypatch, reason):
    server, site = stores
    model = model_in(server)

    def no_link(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", no_link)
    assert stage_out(PLACE, model, server, site, True)["nbytes_moved"] == model["artifact"]["nbytes"]
    assert verify(site, model["artifact"]).stat().st_nlink == 1


def test_a_link_that_cannot_be_written_says_which_site(stores, monkeypatch):
    server, site = stores
    model = model_in(server)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError, match=r"site aurora, round 2: cannot write: No space left"):
        stage_out(PLACE, model, server, site, True)


def test_stage_in_links_too(stores):
    server, site = stores
    manifest, base = staged(server, site)
    assert stage_in(PLACE, manifest, base, site, server, RULES, True)["nbytes_moved"] == 0
    assert verify(server, manifest["artifact"]).stat().st_nlink == 2


def test_stage_in_after_another_app_s_transfer_returns_the_site_s_manifest(stores):
    """Bytes and times of the transfer are reported by the other app."""
    server, site = stores
    said, base = staged(server, site)
    move(said["artifact"], site, server)
    carried = said | {"manifest": said, "store": server, "nbytes_moved": 7, "started": said["started"] + 100}
    result = stage_in(PLACE, carried, base, server, server, RULES)
    assert (result["manifest"], result["nbytes_moved"]) == (said, 0)
    assert result["wait_s"] == pytest.approx(3)


def test_a_damaged_transfer_of_another_app_is_an_artifact_error(stores):
    server, site = stores
    said, base = staged(server, site)
    move(said["artifact"], site, server)
    damage(server, said["artifact"])
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        stage_in(PLACE, said | {"manifest": said}, base, server, server, RULES)

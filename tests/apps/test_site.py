"""Status of a site, from its storage alone."""

from __future__ import annotations

import os
import time

import pytest
from training_site import PLACE, Site

from apps.base.errors import StorageError
from apps.site import site_status
from apps.training.leases import acquire


def test_an_empty_site(tmp_path):
    status = site_status(PLACE, str(tmp_path))
    assert {k: v for k, v in status.items() if k != "time"} == {
        "progress": None,
        "claims": [],
        "checkpoint": None,
        "finished": None,
    }
    assert abs(status["time"] - time.time()) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_site_that_has_trained(tmp_path):
    site = Site(tmp_path)
    manifest = site.train()
    status = site_status(PLACE, str(site.root))
    assert (status["finished"], status["claims"], status["checkpoint"]) == (manifest["task_id"], [], None)
    assert status["progress"] and status["progress"]["step"] == 2


def test_a_site_that_is_training(tmp_path):
    folder = tmp_path / "checkpoints" / "t1"
    folder.mkdir(parents=True)
    for number, age_s in ((3, 100), (9, 10)):
        path = folder / f"step-{number:09d}.abc.safetensors"
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    with acquire(tmp_path, "t1"), acquire(tmp_path, "t2"):
        os.utime(tmp_path / "claims" / "t2.000001.json", (0, 0))
        status = site_status(PLACE, str(tmp_path))
    assert status["claims"] == ["t1"]
    assert status["checkpoint"] == "checkpoints/t1/step-000000009.abc.safetensors"


def test_a_link_that_leads_outside_is_not_followed(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifests").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="site aurora, round 1: path leads outside"):
        site_status(PLACE, str(tmp_path / "site"))

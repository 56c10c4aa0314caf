"""The price of a save, from the last one at the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_site import Site

from apps.base.identity import Place
from apps.training.save_rate import FILE, record_save, save_price_s


def test_the_price_is_proportional_to_the_size(tmp_path):
    assert save_price_s(tmp_path, 10**9) == 0.0
    record_save(tmp_path, 27 * 10**9, 72.0)
    assert save_price_s(tmp_path, 81 * 10**9) == pytest.approx(216.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"bytes": 0, "seconds": 1}', '{"bytes": 1, "seconds": -1}', '{"bytes": 1, "seconds": NaN}'],
)
def test_a_record_that_says_nothing_is_none(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    assert save_price_s(tmp_path, 10) == 0.0


def test_what_cannot_be_written_is_left_out(tmp_path):
    record_save(tmp_path / "file" / "none", 1, 1.0)
    (tmp_path / "file2").write_text("")
    record_save(tmp_path / "file2", 1, 1.0)
    record_save(Path("/proc/none"), 1, 1.0)


def test_the_first_round_of_a_site_prices_the_saves_of_the_second(tmp_path, monkeypatch):
    """Its update is enough: no checkpoint is written early in the next round, nor one that the end makes useless."""
    from apps.training import deadline

    monkeypatch.setattr(deadline, "FIRST_SAVE_S", 0.0)
    site = Site(tmp_path)
    first = site.train()
    assert first["save_s"] > 0  # nothing was known
    assert first["update_s"] > 0 and 0 <= first["verify_s"] + first["data_s"] <= first["load_s"]
    second = site.train(Place(site="aurora", round=2))
    assert second["save_s"] == 0
    record_save(site.root, 1, 10.0)
    third = site.train(Place(site="aurora", round=3), checkpoint_s=0.0)
    assert third["save_s"] == 0


def test_a_round_hashes_its_base_once(tmp_path, monkeypatch):
    """At 0.67 s a gigabyte a second time is 18 s of all ranks for a model of 7 billion parameters."""
    from apps.artifacts import store

    site, hashed, sha256 = Site(tmp_path), [], store.sha256_file
    monkeypatch.setattr(store, "sha256_file", lambda path: hashed.append(Path(path).name) or sha256(path))
    site.train()
    assert [name for name in hashed if site.base["artifact"]["sha256"] in name] == [site.update(site.base).name]

"""What a person reads of a plan before it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from campaigns import nano

from apps.base.errors import UserMistake
from workflows.checks.preview import plan_in_words, switched_off
from workflows.planning.campaign_file import check_campaign, settle_dtype
from workflows.planning.plan import make_plan


def words(folder: Path, strategy: dict[str, Any]) -> dict[str, str]:
    campaign = settle_dtype(check_campaign(nano(strategy=strategy), folder))
    return dict(plan_in_words(make_plan(campaign, folder, folder)))


def test_rounds_and_versions_are_called_so(tmp_path: Path) -> None:
    told = words(tmp_path, {"name": "fedavg"})
    assert told["campaign"] == "nano, seed 3, 3 rounds of fedavg" and "samples a round" in told["training"]
    told = words(tmp_path, {"name": "fedbuff"})
    assert told["campaign"] == "nano, seed 3, 3 versions of fedbuff" and "samples an order" in told["training"]


@pytest.mark.parametrize(
    ("strategy", "off"),
    [
        ({"name": "fedavg"}, []),
        ({"name": "fedbuff", "late_binding": True}, []),
        ({"name": "fedecho"}, ["early"]),
        ({"name": "fedecho", "early": False}, []),
        ({"name": "fedecho", "early": False, "late_binding": False}, ["gather"]),
    ],
)
def test_what_does_not_hold_on_machines_is_said(tmp_path: Path, strategy: dict[str, Any], off: list[str]) -> None:
    said = switched_off(check_campaign(nano(strategy=strategy), tmp_path))
    assert [text.split()[0] for text in said] == [f"strategy.{key}" for key in off]
    assert ("switched off" in words(tmp_path, strategy)) == bool(off)


def test_the_extent_of_a_campaign(tmp_path: Path) -> None:
    extents = [check_campaign(nano(strategy=name), tmp_path).extent for name in ("fedavg", "fedprox", "fedasync")]
    assert extents == ["3 rounds", "3 rounds of fedprox", "3 versions of fedasync"]


def test_one_is_one(tmp_path: Path) -> None:
    """No ``1 rounds``, ``1 samples``, ``1 tasks`` anywhere in a plan."""
    least = {"rounds": 1, "training": {"steps": 1, "batch_size": 1, "learning_rate": 0.1}}
    sites = {"here": {"config": "local", "tasks": ["molecule_generation"]}}
    campaign = check_campaign(nano(**least, sites=sites), tmp_path)
    assert campaign.extent == "1 round"
    told = dict(plan_in_words(make_plan(campaign, tmp_path / "run", tmp_path)))
    assert told["training"].startswith("1 step of 1 sample a round") and told["campaign"].endswith("1 round of fedavg")
    assert not re.search(r"\b1 \w+s\b", " ".join(map(str, told.values())))
    with pytest.raises(UserMistake, match="2 is more than the 1 site$"):
        check_campaign(nano(**least, sites=sites, strategy={"quorum": 2}), tmp_path)

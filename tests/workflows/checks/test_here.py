"""What this host lacks is said before anything runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from campaigns import write_campaign

from site_configs.library.site import Block, Queue
from workflows.checks.here import missing_here, path_problem
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import make_plan

ODD = ["a b", "~x", "$HOME", "it's", 'a"b', "a&b", "a;b", "a(b", "a%j", "a:b", "a*b", "a\\b"]


def plan_in(folder: Path, route: str) -> Any:
    plan = make_plan(load_campaign(write_campaign(folder)), folder / "runs" / "nano", folder / "nano.yaml")
    block = Block("slurm", Queue("small", 1, 1, 3600, date(2026, 8, 19), "a guide"), 1, 3600)
    sites = {name: replace(site, route=route, block=block) for name, site in plan.sites.items()}
    return replace(plan, sites=sites)


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_batch_scripts_cannot_name_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    problem = path_problem(plan_in(folder, "batch"))
    assert problem is not None and str(folder) in problem and "Start in a folder whose path" in problem
    assert path_problem(plan_in(folder, "local")) is None


@pytest.mark.parametrize("name", ["plain", "v1.2-beta_3", "a+b=c,d@e", "Übung"])
def test_usual_paths_pass(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert path_problem(plan_in(folder, "batch")) is None


def test_it_is_among_what_a_check_reports(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    assert any("batch scripts cannot name" in problem for problem in missing_here(plan_in(folder, "batch")))

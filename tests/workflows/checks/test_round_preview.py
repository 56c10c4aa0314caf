"""The first round as text, by the code that submits it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from campaigns import PROJECT

from site_configs.library.site import Collection
from workflows.checks.round_preview import first_round
from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import make_plan

DEMO = PROJECT / "workflows" / "campaigns" / "demo.yaml"


def test_the_first_round_of_the_demo(tmp_path: Path) -> None:
    lines = list(first_round(make_plan(load_campaign(DEMO), tmp_path / "run", DEMO)))
    assert lines[1] == "model 0 ─ stage_out [server] ─> local_train [perlmutter] ─> stage_in [server] ─┐"
    assert [line.split("local_train ")[1].split()[0] for line in lines[1:5]] == [
        "[perlmutter]",
        "[polaris]",
        "[aurora]",
        "[frontier]",
    ]
    assert lines[-1] == "└─> aggregate [server] ─> model 1 ─> 5 x evaluate [evaluator]"


def test_where_globus_transfers_its_apps_are_in_the_chain(tmp_path: Path) -> None:
    plan = make_plan(load_campaign(DEMO, (), "aurora"), tmp_path / "run", DEMO)
    far = dataclasses.replace(plan.sites["aurora"], carrier="globus", collection=Collection("id"))
    lines = list(first_round(dataclasses.replace(plan, sites={"aurora": far})))
    assert lines[1] == (
        "model 0 ─ send [transfers] ─> local_train [aurora] ─> fetch [transfers] ─> stage_in [server] ─┐"
    )

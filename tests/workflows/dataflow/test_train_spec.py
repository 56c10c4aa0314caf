"""Orders and models as apps and journal take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaigns import nano

from workflows.dataflow.norm_bounds import Clip
from workflows.dataflow.replay import Clock
from workflows.dataflow.train_spec import (
    counted_updates,
    server_rule_spec,
    site_weights,
    train_request,
    update_event,
)
from workflows.planning.campaign_file import check_campaign, settle_dtype
from workflows.planning.plan import Plan, make_plan
from workflows.records.journal import Journal
from workflows.strategies.base import Aggregate, ServerRule, Train

TRAINING = {"steps": 4, "learning_rate": 0.5, "proximal_mu": 0.25, "schedule": "linear"}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    campaign = settle_dtype(check_campaign(nano(training=TRAINING), tmp_path))
    return make_plan(campaign, tmp_path, tmp_path)


def spec_of(plan: Plan, action: Train, **changes: Any) -> dict[str, Any]:
    settings = {"asked": [3], "attempt": 1, "keep": None, "until": None} | changes
    return dict(train_request(plan, action, **settings)["training"])


def test_what_the_strategy_leaves_open_is_as_the_campaign_says(plan: Plan) -> None:
    spec = spec_of(plan, Train(0, "aurora", 2, 3))
    assert {key: spec[key] for key in TRAINING} == TRAINING
    assert (spec["start_step"], spec["total_steps"], spec["until"], spec["device"]) == (8, 12, None, "cpu")


def test_what_the_strategy_says_holds(plan: Plan) -> None:
    action = Train(0, "aurora", 1, 7, steps=9, rate_factor=0.5, proximal_mu=0.0)
    spec = spec_of(plan, action, until=99.0)
    assert (spec["steps"], spec["learning_rate"], spec["proximal_mu"], spec["until"]) == (9, 0.25, 0.0, 99.0)
    assert spec["start_step"] == 4  # the schedule follows the versions, not the orders of a site


def test_versions_that_a_resume_has_added_follow_the_longer_schedule(plan: Plan) -> None:
    assert spec_of(plan, Train(0, "aurora", 2, 3), asked=[3, 5])["total_steps"] == 12
    assert spec_of(plan, Train(0, "aurora", 3, 4), asked=[3, 5])["total_steps"] == 20


def test_moments_go_on_only_where_the_campaign_keeps_them(plan: Plan) -> None:
    order = train_request(plan, Train(0, "aurora", 0, 1), [3], 2, "before", None)
    assert (order["optimizer_from"], order["attempt"]) == (None, 2)


@pytest.mark.parametrize(("told_s", "planned_s"), [(90.0, 90.0), (1e9, 100.0), (1e-310, 0.0)])
def test_no_training_has_taken_longer_than_the_campaign(told_s: float, planned_s: float, tmp_path: Path) -> None:
    """Strategies would wait for others as long as the slowest site says that it needs."""
    clock = Clock(Journal(tmp_path / "journal.jsonl"), 1000.0, lambda: 1100.0)
    manifest = {"task_id": "a" * 32, "steps_done": 4, "samples": 8, "train_s": told_s}
    arrival = {"manifest": manifest, "wait_s": told_s, "update_norm": 1.0}
    event = update_event(clock, Train(0, "aurora", 0, 1), arrival, {"samples": 8})
    assert (event.train_s, event.wait_s) == (planned_s, planned_s)


def test_the_record_of_an_update_has_its_base_and_if_it_is_new() -> None:
    orders = {0: Train(0, "a", 0, 1), 1: Train(1, "b", 2, 1), 5: Train(5, "a", 3, 2)}
    action = Aggregate(4, 3, ((0, -0.25), (1, 0.5), (5, 0.25)), ((3, 0.5),))
    updates = counted_updates(action, orders, {0}, {1: Clip(8.0, 0.5, 2.0, 4.0)})
    assert list(updates.values()) == [
        {"site": "a", "order": 1, "weight": -0.25, "staleness": 3, "new": False},
        {"site": "b", "order": 1, "weight": 0.5, "staleness": 1, "new": True, "norm": 8.0, "clip": 0.5},
        {"site": "a", "order": 2, "weight": 0.25, "staleness": 0, "new": True},
    ]
    assert site_weights(updates) == {"a": 0.0, "b": 0.5}


def test_a_rule_in_plain_values() -> None:
    action = Aggregate(1, 0, ((0, 1.0),), server=ServerRule("adam", 0.1, 0.9, 0.99, 1e-3))
    assert server_rule_spec(action) == {"name": "adam", "rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    assert server_rule_spec(Aggregate(1, 0, ((0, 1.0),))) is None

"""The state that a resume continues from: the events that count, the models as recorded, and the campaign's clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.base.errors import CrossfedError
from workflows.dataflow.replay import Clock, forget_failures, recorded_events, require_same_aggregation
from workflows.records.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def told(journal: Journal, kind: str, **fields: object) -> None:
    journal.write("strategy_event", kind=kind, fields=fields)


def kinds(journal: Journal) -> list[str]:
    return [f"{r['kind']} {r['fields'].get('task', '')}".strip() for r in recorded_events(journal)]


def test_only_an_end_of_the_story_is_forgotten(journal: Journal) -> None:
    told(journal, "CampaignStarted")
    told(journal, "SiteFailed", task=0)  # the next model went on without it
    told(journal, "UpdateArrived", task=1)
    journal.write("aggregated", version=1)
    told(journal, "UpdateArrived", task=2)
    told(journal, "SiteFailed", task=3)
    told(journal, "UpdateArrived", task=4)
    told(journal, "SiteFailed", task=5)
    forget_failures(journal)
    assert kinds(journal) == ["CampaignStarted", "SiteFailed 0", "UpdateArrived 1", "UpdateArrived 2"]
    assert next(journal.events("failures_forgotten"))["tasks"] == [3, 5]
    told(journal, "SiteFailed", task=3)  # again, by the next driver
    assert kinds(journal)[-1] == "SiteFailed 3"
    forget_failures(journal)
    assert kinds(journal)[-1] == "UpdateArrived 2"


def test_without_a_failure_nothing_is_forgotten(journal: Journal) -> None:
    told(journal, "CampaignStarted")
    forget_failures(journal)
    assert kinds(journal) == ["CampaignStarted"]


def record(journal: Journal, event: str, at: float) -> None:
    journal.records.append({"event": event, "time": at, "seq": len(journal.records) + 1})


def test_the_clock_stands_still_while_no_driver_is_there(journal: Journal) -> None:
    for event, at in (
        ("campaign_opened", 1000.0),
        ("driver_started", 1001.0),
        ("strategy_event", 1010.0),
        ("driver_started", 1110.0),
        ("strategy_event", 1120.0),
        ("driver_started", 2120.0),
    ):
        record(journal, event, at)
    clock = Clock(journal, 1000.0, lambda: 2125.0)
    assert clock.now() == 25.0 and clock.unix(30.0) == 2130.0
    clock.as_of(1120.0)  # as the second driver saw it
    assert clock.absent_s == 100.0 and clock.unix(30.0) == 1130.0
    clock.as_of(1010.0)
    assert clock.unix(30.0) == 1030.0


RECORD = {
    "version": 3,
    "weights": {"a": 0.5, "b": 0.5},
    "updates": [{"site": "a", "weight": 0.5}],
    "models": {"1": 0.5},
}


def test_a_model_is_made_again_as_it_was_made_before() -> None:
    asked = {"weights": {"a": 0.5, "b": 0.5}, "updates": [{"site": "a", "weight": 0.5}], "models": {1: 0.5}}
    require_same_aggregation(RECORD, asked)
    for field, other in (("weights", {"a": 0.9, "b": 0.1}), ("updates", []), ("models", {1: 0.4})):
        with pytest.raises(CrossfedError, match=f"makes model 3 with {field}"):
            require_same_aggregation(RECORD, asked | {field: other})

"""What a site says of itself, within the schema of answers, ends no strategy and gives it no more than its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from workflows.strategies import SECTIONS, AnySection, make_strategy
from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockStarted,
    CampaignStarted,
    Event,
    RequestBlock,
    SetTimer,
    SiteFacts,
    TimerFired,
    Train,
    UpdateArrived,
)
from workflows.strategies.requests import LARGEST_SHARE

SITES = ("liar", "b", "c")
STEPS, SAMPLES = 100, st.sampled_from([1, 100, 10**12])
SECONDS = st.sampled_from([0.0, 5e-324, 1e-310, 1e-12, 1.0, 1e9])
VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in SECTIONS),
    {"name": "fedecho", "late_binding": False, "weights": "samples"},
    {"name": "fedecho", "memory": False, "words": 1},
    {"name": "fedqueue", "weights": "samples", "staleness": {"kind": "exponential", "a": 1000}},
    {"name": "fednova", "weights": "equal"},
    {"name": "fedbuff", "staleness": {"kind": "exponential", "a": 1000}},
]


@dataclass(frozen=True)
class Words:
    """What the liar says in each of its answers."""

    train_s: float
    wait_s: float
    steps: str  # "none", "one" or "all" that were asked


@dataclass
class Scene:
    """One strategy, whose events happen in the order in which they are caused."""

    section: dict[str, Any]
    samples: dict[str, int]
    words: Words
    asked: dict[str, list[int]] = field(default_factory=lambda: {site: [] for site in SITES})
    owner: dict[int, str] = field(default_factory=dict)

    def play(self, events: int = 60) -> None:
        strategy = make_strategy(TypeAdapter(AnySection).validate_python(self.section), 6, STEPS)
        facts = tuple(SiteFacts(site, self.samples[site], 1, 3600.0) for site in SITES)
        waiting: list[Event] = [CampaignStarted(0.0, facts)]
        for k in range(events):
            if not waiting:
                return
            for action in strategy.react(waiting.pop(0)):
                waiting += self.follows(action, 10.0 * k)

    def follows(self, action: Action, now_s: float) -> list[Event]:
        match action:
            case Train():
                return [self.answer(action, now_s + 5)]
            case RequestBlock(site):
                return [BlockStarted(now_s, site, 1.0, now_s + 3600.0)]
            case SetTimer(name, at_s):
                assert 0 < at_s < 1e7
                return [TimerFired(at_s, name)] if at_s < now_s + 60 else []
            case Aggregate():
                self.check(action)
        return []

    def answer(self, action: Train, now_s: float) -> UpdateArrived:
        site, steps = action.site, action.steps or STEPS
        assert 0 < action.rate_factor <= 1 and 1 <= steps == int(steps)
        self.owner[action.task] = site
        self.asked[site].append(steps)
        train_s, wait_s, done = 0.1 * steps, 1.0, steps
        if site == "liar":
            train_s, wait_s = self.words.train_s, self.words.wait_s
            done = {"none": 0, "one": 1, "all": steps}[self.words.steps]
        return UpdateArrived(now_s, site, action.task, "id", done, 5, train_s, wait_s, self.samples[site], 1.0)

    def check(self, made: Aggregate) -> None:
        weights = [weight for _, weight in (*made.parts, *made.models)]
        assert all(map(math.isfinite, weights)) and sum(weights) == pytest.approx(1)
        own, total = 0.0, 0.0
        for task, weight in made.parts:
            total += max(weight, 0.0)
            own += max(weight, 0.0) * (self.owner[task] == "liar")
        several = len({self.owner[task] for task, _ in made.parts}) > 1
        if several and self.section["name"] not in ("fedasync", "fedbuff", "area"):  # these take no word of a site
            assert own <= LARGEST_SHARE * total + 1e-9


@pytest.mark.parametrize("section", VARIANTS, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    words=st.builds(Words, SECONDS, SECONDS, st.sampled_from(["none", "one", "all"])),
    samples=st.tuples(SAMPLES, SAMPLES, SAMPLES),
)
def test_whatever_a_site_says_of_itself(section: dict[str, Any], words: Words, samples: tuple[int, ...]) -> None:
    Scene(section, dict(zip(SITES, samples, strict=True)), words).play()


@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "area", "fedcompass", "fedecho"])
def test_a_site_that_does_no_step_three_times_is_left_out(name: str) -> None:
    scene = Scene({"name": name}, dict.fromkeys(SITES, 100), Words(1.0, 0.0, "none"))
    scene.play()
    assert len(scene.asked["liar"]) == 3

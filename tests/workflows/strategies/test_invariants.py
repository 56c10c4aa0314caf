"""Invariants of every strategy in random campaigns; the checks themselves are in strategy_driver.py."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from strategy_driver import World

from workflows.strategies import SECTIONS, AnySection, make_strategy
from workflows.strategies.base import Stop

SETTINGS: list[dict[str, Any]] = [
    *({"name": name} for name in SECTIONS),
    {"name": "fedavg", "quorum": 2, "deadline_s": 400},
    {"name": "fedavg", "quorum": 1, "participants": 2, "weights": "equal"},
    {"name": "fednova", "quorum": 1, "deadline_s": 900},
    {"name": "scaffold", "quorum": 1, "participants": 2},
    {"name": "fedasync", "staleness": {"kind": "hinge", "a": 10}, "per_site": True, "late_binding": True},
    {"name": "fedbuff", "buffer": 5, "rate": 0.7, "momentum": 0.9},
    {"name": "fedbuff", "late_binding": True},
    {"name": "area", "buffer": 3, "late_binding": True},
    {"name": "fedecho", "early": False, "kappa": 0.5, "rate": 0.5, "weights": "samples"},
    {"name": "fedecho", "words": 1, "stretch": False, "gather": False},
    {"name": "fedecho", "late_binding": False, "memory": False, "fit": False},
    {"name": "fedqueue", "window_s": 600, "weights": "equal", "staleness": {"kind": "exponential", "a": 0.3}},
]
DROPPING = {"deadline_s"}  # settings with which an update may come too late to count


def world_of(
    settings: dict[str, Any], seed: int, sites: int, failing: float, rounds: int = 12, events: int = 400
) -> World:
    section = TypeAdapter(AnySection).validate_python(settings)
    echoing = settings.get("words", 8) if settings["name"] == "fedecho" else 0
    world = World(lambda: make_strategy(section, rounds, 20), random.Random(seed), failing, echoing=echoing)
    world.play(sites, events)
    return world


@pytest.mark.parametrize("given_settings", SETTINGS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), sites=st.integers(2, 6), failing=st.sampled_from([0.0, 0.1, 0.5]))
def test_random_campaigns(given_settings: dict[str, Any], seed: int, sites: int, failing: float) -> None:
    world = world_of(given_settings, seed, sites, failing)
    assert world.echoing or len(world.added) == len(set(world.added)), "an update was counted twice"
    assert len(world.removed) == len(set(world.removed))
    assert set(world.removed) <= set(world.added)
    if world.stop and world.stop.failure is None:
        assert world.version == 12


@pytest.mark.parametrize("given_settings", SETTINGS, ids=str)
def test_no_update_is_lost(given_settings: dict[str, Any]) -> None:
    """Without failures all updates count except those that wait when the campaign ends."""
    sites = 4
    world = world_of(given_settings, 5, sites, 0.0, rounds=40, events=2000)
    assert world.stop == Stop() and world.version == 40
    last = {o.site: o.task for o in world.requests.values() if o.task in world.arrived}
    waiting = {t for t in world.arrived - set(world.added) if world.requests[t].version >= world.version - sites * 3}
    lost = world.arrived - set(world.added) - waiting
    if given_settings["name"] == "area":  # a site's update replaces the one before
        assert set(last.values()) <= set(world.added) | waiting
    elif not DROPPING & given_settings.keys():
        assert not lost


def test_staleness_occurs_and_is_bounded_by_admission() -> None:
    free = world_of({"name": "fedasync"}, 3, 5, 0.0, rounds=60)
    assert max(free.staleness) > 2
    rounds = world_of({"name": "fedavg"}, 3, 5, 0.0)
    assert set(rounds.staleness) == {0}


def test_a_section_without_a_name_is_fedavg_and_unknown_keys_are_refused() -> None:
    sections = TypeAdapter(AnySection)
    assert sections.validate_python({"quorum": 2}).name == "fedavg"
    with pytest.raises(ValidationError, match="alpha"):
        sections.validate_python({"name": "fedavg", "alpha": 0.5})
    with pytest.raises(ValidationError, match="quorum"):
        sections.validate_python({"deadline_s": 5})
    with pytest.raises(ValidationError, match="fedmagic"):
        sections.validate_python({"name": "fedmagic"})


@pytest.mark.parametrize("name", SECTIONS)
def test_a_world_in_which_every_site_fails_ends_with_a_reason(name: str) -> None:
    world = world_of({"name": name}, 1, 3, 1.0)
    assert world.stop is not None and world.stop.failure

"""How the time of a block divides over a round, for the numbers of the reference campaign."""

from __future__ import annotations

import pytest

from workflows.planning.memory.estimate import FLOAT32, TrainingSetup
from workflows.planning.memory.model import ModelShape
from workflows.planning.memory.round_time import RoundTime, describe_round, round_time, steps_for_goal

LLAMA = ModelShape(
    parameters=6_738_415_616,
    trained=6_738_415_616,
    layer=202_383_360,
    outside=262_148_096,
    layers=32,
    width=4096,
    key_width=4096,
    inner=11008,
    vocabulary=32000,
    gated=True,
    adapted=False,
    config="{}",
    adapter="null",
)
SETUP = TrainingSetup(weight_bytes=FLOAT32, mixed=True, length=512)


def a_round(steps: int, checkpoint_s: float = 300.0) -> RoundTime:
    return round_time(LLAMA, SETUP, steps * 48, 30.0, 2, checkpoint_s)


def test_a_short_round_of_a_large_model_is_mostly_overhead():
    found = a_round(30)
    assert found.train == pytest.approx(48)
    assert found.update == pytest.approx(2.66 * 26.95, rel=1e-3)
    assert found.save == 0  # 215 s: more than the training
    assert 0.25 < found.share < 0.35


def test_the_steps_that_are_named_reach_the_goal():
    found = a_round(30)
    enough = steps_for_goal(found, 30, found.load + found.data + found.update)
    assert a_round(enough, checkpoint_s=3600).share == pytest.approx(0.8, abs=0.01)
    first, goal, once = describe_round(found, 30)
    assert "training 48 s" in first and "31% of it training" in first
    assert f"{enough} steps a round instead of 30" in goal
    assert once.startswith("once a block: ")


def test_checkpoints_count_in_long_rounds():
    found = a_round(1000)
    assert found.save == pytest.approx(4 * 3 * 2.66 * 26.95, rel=1e-3)  # 1,600 s of training, one each 300 s


def test_bfloat16_traffic_halves_what_is_loaded_but_not_what_is_written():
    found = round_time(LLAMA, SETUP, 1440, 30.0, 2, 300.0, sent_bytes=2)
    assert found.load == pytest.approx(a_round(30).load / 2)
    assert found.update == pytest.approx(2.66 * 26.95 + 0.61 * 26.95, rel=1e-3)


def test_adapters_cost_next_to_nothing():
    small = ModelShape(**{**vars(LLAMA), "trained": 20_000_000, "adapted": True})
    assert round_time(small, SETUP, 1440, 30.0, 2, 300.0).share > 0.9
    assert len(describe_round(round_time(small, SETUP, 1440, 30.0, 2, 300.0), 30)) == 2

"""The learning rate over a campaign, and AdamW's moments by name."""

from __future__ import annotations

import math

import pytest
import torch

from apps.training.optimization import make_optimizer, optimizer_tensors, rate_factor, update_parameters

SPEC = {"learning_rate": 0.1, "weight_decay": 0.0, "proximal_mu": 0.5, "clip_norm": None}


def test_warm_up_then_constant():
    factors = [rate_factor(step, "constant", 3, 0) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_linear_decay_goes_from_one_to_the_final_factor():
    factors = [rate_factor(step, "linear", 2, 12, 0.1) for step in range(14)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[7] == pytest.approx(0.55)
    assert factors[12] == factors[13] == pytest.approx(0.1)


def test_cosine_decay():
    assert rate_factor(0, "cosine", 0, 10) == 1.0
    assert rate_factor(5, "cosine", 0, 10) == pytest.approx(0.5)
    assert rate_factor(2, "cosine", 0, 8, 0.2) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_factor(10, "cosine", 0, 10, 0.2) == rate_factor(99, "cosine", 0, 10, 0.2) == pytest.approx(0.2)


def test_warm_up_longer_than_the_campaign():
    assert [rate_factor(s, "linear", 9, 5) for s in (0, 4, 8)] == pytest.approx([0.1, 0.5, 0.9])
    assert rate_factor(9, "linear", 9, 5) == 1.0  # nothing is left to decay over


def stepped(moments: dict | None = None) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    trained = {"weight": torch.nn.Parameter(torch.ones(3)), "idle": torch.nn.Parameter(torch.ones(2))}
    optimizer = make_optimizer(trained, SPEC, moments)
    trained["weight"].grad = torch.tensor([1.0, -2.0, 0.5])
    update_parameters(optimizer, list(trained.values()), [], SPEC, 0.01)
    return trained, optimizer


def test_the_rate_of_the_step_is_the_one_that_is_given():
    trained, optimizer = stepped()
    torch.testing.assert_close(trained["weight"].detach(), torch.tensor([0.99, 1.01, 0.99]))  # Adam's first step
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert trained["weight"].grad is None


def test_moments_go_out_and_in_by_name():
    trained, optimizer = stepped()
    kept = optimizer_tensors(trained, optimizer)
    assert sorted(kept) == ["weight/exp_avg", "weight/exp_avg_sq", "weight/step"]
    again, other = stepped(kept)
    assert float(optimizer_tensors(again, other)["weight/step"]) == 2.0


def test_the_proximal_term_leaves_idle_tensors_alone():
    trained = {"weight": torch.nn.Parameter(torch.ones(1)), "idle": torch.nn.Parameter(torch.ones(1))}
    trained["weight"].grad = torch.zeros(1)
    seen = []
    optimizer = make_optimizer(trained, SPEC, None)
    optimizer.register_step_pre_hook(lambda *_: seen.append(trained["weight"].grad.item()))
    update_parameters(optimizer, list(trained.values()), [torch.full((1,), 0.6)] * 2, SPEC, 0.01)
    assert seen == [pytest.approx(0.5 * 0.4)]
    assert trained["idle"].item() == 1.0

"""Training at virtual sites against torch, the split of the digits, and the virtual server against the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.aggregate import aggregate
from apps.artifacts.server_optimizer import MOMENTS, ServerRuleSpec, optimizer_step
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.base.identity import Place
from apps.base.versions import code_version
from workflows.strategies.base import Aggregate, RobustRule, ServerRule
from workflows.studies.simulation.digits import LAYOUT, LEAST_SAMPLES, Digits, split_digits, split_rows
from workflows.studies.simulation.mlp import Layout, descend, forward, initial
from workflows.studies.simulation.problem import LocalWork
from workflows.studies.simulation.server import combined, stepped

SMALL = Layout(6, 5, 3)


def torch_descend(start: np.ndarray, batches: tuple, rate: float, mu: float, correction: np.ndarray | None) -> list:
    layers = [torch.tensor(view.copy(), requires_grad=True) for view in SMALL.views(start)]
    origin = [layer.detach().clone() for layer in layers]
    extra = [torch.tensor(v.copy()) for v in SMALL.views(correction)] if correction is not None else None
    for x, y in zip(*batches, strict=True):
        w1, b1, w2, b2 = layers
        scores = torch.relu(torch.tensor(x) @ w1 + b1) @ w2 + b2
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(y).argmax(1))
        loss = loss + mu / 2 * sum(((p - o) ** 2).sum() for p, o in zip(layers, origin, strict=True))
        gradients = torch.autograd.grad(loss, layers)
        with torch.no_grad():
            for k, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
                layer -= rate * (gradient + (extra[k] if extra else 0))
    return layers


@pytest.mark.parametrize(("mu", "corrected"), [(0.0, False), (0.3, False), (0.0, True), (0.3, True)])
def test_descend_equals_torch(mu: float, corrected: bool) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((25, 4, 6)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[draw.integers(0, 3, (25, 4))]
    start = initial(SMALL, 1)
    correction = (0.1 * draw.standard_normal(SMALL.size)).astype(np.float32) if corrected else None
    before = start.copy()
    found = descend(SMALL, start, (x, y), 0.1, mu, correction)
    for view, expected in zip(SMALL.views(found), torch_descend(start, (x, y), 0.1, mu, correction), strict=True):
        np.testing.assert_allclose(view, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert (start == before).all()


def test_forward_equals_torch() -> None:
    vector, x = initial(SMALL, 2), np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)
    w1, b1, w2, b2 = (torch.tensor(v) for v in SMALL.views(vector))
    expected = torch.log_softmax(torch.relu(torch.tensor(x) @ w1 + b1) @ w2 + b2, 1)
    np.testing.assert_allclose(forward(SMALL, vector, x), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.allclose(np.exp(forward(SMALL, vector, 1000 * x)).sum(1), 1)  # no overflow


@pytest.mark.parametrize(("sites", "alpha"), [(2, 0.1), (4, 0.1), (4, 0.5), (12, 0.1)])
def test_every_sample_goes_to_one_site_and_every_site_has_some(sites: int, alpha: float) -> None:
    (_, labels), _ = split_digits(3)
    shards = split_rows(labels, sites, alpha, 3)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert min(map(len, shards)) >= LEAST_SAMPLES


def test_training_depends_on_the_round_alone() -> None:
    problem = Digits(2, 0.5, 1)
    first = problem.first()
    one, same = (problem.train(first, LocalWork(0, 1, 20)) for _ in range(2))
    assert (one == same).all() and (one != problem.train(first, LocalWork(0, 2, 20))).any()
    assert problem.score(one).loss < problem.score(first).loss
    assert len(problem.score(one).task_losses) == 10 and problem.first().shape == (LAYOUT.size,)


@pytest.mark.parametrize("name", MOMENTS)
def test_the_virtual_server_is_the_real_one(name: str, tmp_path: Path) -> None:
    """Compare two steps of each rule over files and over vectors."""
    draw = np.random.default_rng(4)
    vectors = [draw.standard_normal(9).astype(np.float32) for _ in range(4)]
    rule = ServerRuleSpec(name=name, rate=0.3, beta1=0.8, beta2=0.9, tau=1e-2)
    paths = [artifact_path(tmp_path, save_tensors(tmp_path, {"w": torch.tensor(v)}, "model")) for v in vectors]
    base, state, models, moments = paths[0], None, {0: vectors[0]}, {}
    for version in (1, 2):
        terms = [(base, 0.25), (paths[version], 1.0), (paths[3], -0.25)]
        made, kept = optimizer_step(terms, base, state, rule, tmp_path, "model")
        action = Aggregate(version, version - 1, ((version, 1.0), (3, -0.25)), ((version - 1, 0.25),))
        target = combined(action, models, dict(enumerate(vectors)))
        models[version], moments = stepped(models[version - 1], target, ServerRule(**rule), moments)
        base, state = artifact_path(tmp_path, made), artifact_path(tmp_path, kept)
        np.testing.assert_allclose(models[version], load_tensors(base)["w"].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"])
def test_robust_rules_are_those_of_the_live_engine(rule: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base, vectors = rng.normal(size=30), rng.normal(size=(5, 30))
    vectors[3] *= 1e6
    action = Aggregate(1, 0, tuple((k, 0.2) for k in range(5)), robust=RobustRule(rule))
    ours = combined(action, {0: base}, dict(enumerate(vectors)))
    files = [{"artifact": save_tensors(tmp_path, {"w": torch.from_numpy(v)}, "update")} for v in [base, *vectors]]
    for k, file in enumerate(files):
        file["manifest"] = {"site": f"s{k}"}
    work = {"store": str(tmp_path), "model": {"adapter": None}, "threads": 1, "code_version": code_version()}
    spec = {"name": rule, "bad": 1}
    made = aggregate(Place(site="server", round=1), work, files[0], [0.2] * 5, 1, None, *files[1:], robust=spec)
    np.testing.assert_allclose(load_tensors(artifact_path(tmp_path, made["artifact"]))["w"], ours, rtol=1e-9)

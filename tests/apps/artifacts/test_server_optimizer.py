"""Server rules over files: equal to the formulas in memory, piece by piece, the state carried from step to step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from apps.aggregate import aggregate
from apps.artifacts import streams
from apps.artifacts.server_optimizer import MOMENTS, ServerRuleSpec, optimizer_step
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.weighted_sum import affine_combination
from apps.base.errors import ArtifactError, UserMistake
from apps.base.identity import Place
from apps.base.versions import code_version
from apps.server import ServerWork

Tensors = dict[str, torch.Tensor]


def rule(name: str, rate: float = 0.5) -> ServerRuleSpec:
    return ServerRuleSpec(name=name, rate=rate, beta1=0.9, beta2=0.99, tau=1e-3)


def some(seed: int, count: int = 11) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(count, generator=generator), "b": torch.randn(2, 3, generator=generator)}


def saved(folder: Path, tensors: Tensors) -> Path:
    return artifact_path(folder, save_tensors(folder, tensors, "model"))


def expected(name: str, x: torch.Tensor, m: torch.Tensor, v: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the results of the formulas as in the papers, with D = c - x."""
    d, rate, b1, b2, tau = c - x, 0.5, 0.9, 0.99, 1e-3
    if name == "momentum":
        m = b1 * m + d
        return x + rate * m, m, v
    if name == "nesterov":
        m = b1 * m - d
        return x - rate * (-d + b1 * m), m, v
    m = b1 * m + (1 - b1) * d
    v = {"adagrad": v + d**2, "adam": b2 * v + (1 - b2) * d**2, "yogi": v - (1 - b2) * d**2 * torch.sign(v - d**2)}[
        name
    ]
    return x + rate * m / (v.sqrt() + tau), m, v


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("piece", [4, 1 << 19])
def test_three_steps_follow_the_formula(name, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PIECE", piece)
    x = some(0)
    m, v = ({k: torch.full_like(t, value) for k, t in x.items()} for value in (0.0, 1e-6))
    base, state = saved(tmp_path, x), None
    for step in (1, 2, 3):
        updates = [some(10 * step + k) for k in (1, 2)]
        terms = [(saved(tmp_path, u), w) for u, w in zip(updates, (0.25, 0.75), strict=True)]
        model, moments = optimizer_step(terms, base, state, rule(name), tmp_path, "model")
        for key in x:
            combined = 0.25 * updates[0][key] + 0.75 * updates[1][key]
            x[key], m[key], v[key] = expected(name, x[key], m[key], v[key], combined)
        base, state = artifact_path(tmp_path, model), artifact_path(tmp_path, moments)
        found, memory = load_tensors(base), load_tensors(state)
        for key in x:
            torch.testing.assert_close(found[key], x[key], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(memory[f"m/{key}"], m[key], rtol=1e-5, atol=1e-6)
        assert set(memory) == {f"{letter}/{key}" for letter in MOMENTS[name] for key in x}


def test_momentum_without_memory_is_the_plain_mean(tmp_path):
    plain = ServerRuleSpec(name="momentum", rate=1.0, beta1=0.0, beta2=0.0, tau=0.0)
    base, terms = saved(tmp_path, some(0)), [(saved(tmp_path, some(k)), 0.5) for k in (1, 2)]
    model, _ = optimizer_step(terms, base, None, plain, tmp_path, "model")
    mean = load_tensors(artifact_path(tmp_path, affine_combination(terms, base, tmp_path)))
    for key, tensor in load_tensors(artifact_path(tmp_path, model)).items():
        torch.testing.assert_close(tensor, mean[key])


def test_nesterov_of_a_still_gradient_goes_one_plus_mu_far(tmp_path):
    base, term = saved(tmp_path, {"w": torch.zeros(1)}), saved(tmp_path, {"w": torch.ones(1)})
    one = ServerRuleSpec(name="nesterov", rate=0.7, beta1=0.9, beta2=0.0, tau=0.0)
    model, _ = optimizer_step([(term, 1.0)], base, None, one, tmp_path, "model")
    assert math.isclose(load_tensors(artifact_path(tmp_path, model))["w"].item(), 0.7 * 1.9, rel_tol=1e-6)


def test_types_are_kept_and_whole_numbers_are_averaged(tmp_path):
    tensors = {"w": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor([4], dtype=torch.int64)}
    other = {"w": torch.zeros(3, dtype=torch.bfloat16), "n": torch.tensor([8], dtype=torch.int64)}
    base, term = saved(tmp_path, tensors), saved(tmp_path, other)
    model, state = optimizer_step([(term, 1.0)], base, None, rule("momentum", 1.0), tmp_path, "model")
    found = load_tensors(artifact_path(tmp_path, model))
    assert found["w"].dtype == torch.bfloat16 and found["n"].tolist() == [8]
    assert set(load_tensors(artifact_path(tmp_path, state))) == {"m/w"}


def test_a_state_of_another_rule_is_refused(tmp_path):
    base, term = saved(tmp_path, some(0)), saved(tmp_path, some(1))
    _, state = optimizer_step([(term, 1.0)], base, None, rule("momentum"), tmp_path, "model")
    with pytest.raises(ArtifactError, match="another rule"):
        optimizer_step([(term, 1.0)], base, artifact_path(tmp_path, state), rule("adam"), tmp_path, "model")


def test_what_the_updates_leave_out_stays_as_it_is(tmp_path):
    base = saved(tmp_path, {"frozen": torch.ones(2), "w": torch.zeros(2)})
    terms = [(saved(tmp_path, {"w": torch.full((2,), 4.0)}), 0.5), (base, 0.5)]
    mixed = load_tensors(artifact_path(tmp_path, affine_combination(terms, base, tmp_path)))
    assert mixed["frozen"].tolist() == [1, 1] and mixed["w"].tolist() == [2, 2]


def test_negative_weights_give_differences(tmp_path):
    x, start, end = (saved(tmp_path, {"w": torch.tensor([value])}) for value in (10.0, 3.0, 5.0))
    mixed = affine_combination([(x, 1.0), (end, 0.5), (start, -0.5)], x, tmp_path)
    assert load_tensors(artifact_path(tmp_path, mixed))["w"].tolist() == [11.0]


@pytest.mark.parametrize("wrong", [{"w": torch.zeros(3)}, {"other": torch.zeros(2)}])
def test_files_that_do_not_fit_are_refused(wrong, tmp_path):
    base = saved(tmp_path, {"w": torch.zeros(2)})
    with pytest.raises(ArtifactError, match="not in"):
        affine_combination([(saved(tmp_path, wrong), 1.0)], base, tmp_path)


def test_nothing_in_common_is_refused(tmp_path):
    base = saved(tmp_path, {"v": torch.zeros(2), "w": torch.zeros(2)})
    terms = [(saved(tmp_path, {name: torch.zeros(2)}), 0.5) for name in "vw"]
    with pytest.raises(ArtifactError, match="in all of the 2 files"):
        affine_combination(terms, base, tmp_path)


def work(store: Path, method: str | None = None) -> ServerWork:
    adapter = {"method": method} if method else None
    model = {"source": "tiny", "adapter": adapter}
    return {"store": str(store), "model": model, "threads": 1, "code_version": code_version()}  # type: ignore


def test_the_task_chains_the_state_by_version(tmp_path):
    place = Place(site="server", round=1)
    carrier = {"artifact": save_tensors(tmp_path, {"w": torch.zeros(1)}, "model"), "frozen": "abc"}
    update = {"artifact": save_tensors(tmp_path, {"w": torch.ones(1)}, "update")}
    momentum = ServerRuleSpec(name="momentum", rate=1.0, beta1=0.5, beta2=0.0, tau=0.0)
    first = aggregate(place, work(tmp_path), carrier, [1.0], 1, momentum, update)
    second = aggregate(place, work(tmp_path), first, [1.0], 2, momentum, update)
    assert load_tensors(artifact_path(tmp_path, second["artifact"]))["w"].item() == pytest.approx(1.5)
    plain = aggregate(place, work(tmp_path), first, [0.5, 0.5], 2, None, update, carrier)
    assert load_tensors(artifact_path(tmp_path, plain["artifact"]))["w"].item() == 0.5
    assert (plain["state"], second["frozen"], second["version"]) == (None, "abc", 2)


def test_an_adapter_method_that_is_no_sum_is_refused(tmp_path):
    carrier = {"artifact": save_tensors(tmp_path, {"w": torch.zeros(1)}, "adapter")}
    with pytest.raises(UserMistake, match="flora"):
        aggregate(Place(site="server", round=1), work(tmp_path, "flora"), carrier, [1.0], 1, None, carrier)

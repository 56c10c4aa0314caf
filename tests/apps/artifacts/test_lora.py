"""The server rules for adapters: the product of the aggregate against sum p_k B_k A_k."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.artifacts import lora
from apps.artifacts.store import artifact_path, load_tensors, read_header, save_tensors

PROJECT = Path(__file__).resolve().parents[3]
MODULE = "base_model.model.layers.0.q_proj"
NAME_A, NAME_B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
INPUTS, OUTPUTS, RANK = 40, 36, 3
WEIGHTS = [0.5, 0.3, 0.2]
SEED = 7


def start(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    a, b = lora.fresh_pair(MODULE, RANK, INPUTS, OUTPUTS, SEED)
    return {NAME_A: a.to(dtype), NAME_B: b.to(dtype)}


def trained(model: dict[str, torch.Tensor], method: str, site: int) -> dict[str, torch.Tensor]:
    """Write the update of a site: the trained factors with noise."""
    generator = torch.Generator().manual_seed(site)
    moved = {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in model.items()}
    return {name: tensor for name, tensor in moved.items() if lora.is_trained(name, method)}


def effective(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what is added to W0, before the factor s."""
    product = tensors[NAME_B] @ tensors[NAME_A]
    merged = lora.merged_product(MODULE, tensors)
    return product if merged is None else product + merged


def one_round(
    folder: Path, model: dict[str, torch.Tensor], method: str, number: int, weights: list[float] = WEIGHTS
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the next model, and the weighted mean of what the sites' models add to W0."""
    base = artifact_path(folder, save_tensors(folder, model, "adapter"))
    updates = [trained(model, method, 100 * number + site) for site in range(len(weights))]
    terms = [
        (artifact_path(folder, save_tensors(folder, u, "update")), p) for u, p in zip(updates, weights, strict=True)
    ]
    result = lora.aggregate_adapters(terms, base, method, folder, SEED + number)
    wanted = sum(p * effective(model | update) for p, update in zip(weights, updates, strict=True))
    return load_tensors(artifact_path(folder, result)), wanted


@pytest.mark.parametrize("method", ["ffa", "flora", "fedex"])
@pytest.mark.parametrize("weights", [WEIGHTS, [1.0], [0.9, 0.1], [1 / 7] * 7])
def test_exact_methods_are_exact_over_many_rounds(method, weights, tmp_path):
    """Stacked pairs first, one dense matrix once that is smaller: exact before and after."""
    model, forms = start(), []
    for number in range(1, 6):
        model, wanted = one_round(tmp_path, model, method, number, weights)
        torch.testing.assert_close(effective(model), wanted, rtol=1e-10, atol=1e-10)
        forms.append(sorted(n.removeprefix(MODULE) for n in model if ".merged" in n))
    if method == "ffa":
        assert forms == [[]] * 5
    elif len(weights) < 7:
        assert forms[0] == [".merged_A.weight", ".merged_B.weight"]
        assert forms[-1] == [".merged.weight"] or weights == [1.0]


@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_merged_factors_become_dense_once_that_is_smaller(method, tmp_path):
    model, sizes = start(), []
    for number in range(1, 8):
        model, _ = one_round(tmp_path, model, method, number)
        sizes.append(sum(t.numel() for n, t in model.items() if ".merged" in n))
    assert sizes == sorted(sizes)
    assert sizes[-1] == INPUTS * OUTPUTS  # and never more
    assert sizes[0] < sizes[-1]


def test_merged_factors_stay_exact_in_float32_over_rounds(tmp_path):
    model = start(torch.float32)
    for number in range(1, 8):
        model, wanted = one_round(tmp_path, model, "fedex", number)
        torch.testing.assert_close(effective(model), wanted, rtol=1e-4, atol=1e-4)


def test_fedit_has_exactly_the_error_of_its_table(tmp_path):
    model = start()
    base = artifact_path(tmp_path, save_tensors(tmp_path, model, "adapter"))
    updates = [trained(model, "fedit", site) for site in range(3)]
    terms = [
        (artifact_path(tmp_path, save_tensors(tmp_path, u, "update")), p) for u, p in zip(updates, WEIGHTS, strict=True)
    ]
    result = load_tensors(artifact_path(tmp_path, lora.aggregate_adapters(terms, base, "fedit", tmp_path, 0)))
    mean_a = sum(p * u[NAME_A] for p, u in zip(WEIGHTS, updates, strict=True))
    mean_b = sum(p * u[NAME_B] for p, u in zip(WEIGHTS, updates, strict=True))
    torch.testing.assert_close(result[NAME_A], mean_a)
    torch.testing.assert_close(result[NAME_B], mean_b)
    wanted = sum(p * effective(u) for p, u in zip(WEIGHTS, updates, strict=True))
    error = sum(p * (u[NAME_B] - mean_b) @ (u[NAME_A] - mean_a) for p, u in zip(WEIGHTS, updates, strict=True))
    torch.testing.assert_close(wanted - effective(result), error)
    assert float(error.norm()) > 0.1


def test_ffa_keeps_a_and_sends_b_alone(tmp_path):
    model, _ = one_round(tmp_path, start(), "ffa", 1)
    assert torch.equal(model[NAME_A], start()[NAME_A])
    assert list(trained(start(), "ffa", 1)) == [NAME_B]


def test_flora_restarts_its_adapters(tmp_path):
    model, _ = one_round(tmp_path, start(torch.float32), "flora", 1)
    a, b = lora.fresh_pair(MODULE, RANK, INPUTS, OUTPUTS, SEED + 1)
    assert torch.equal(model[NAME_A], a)
    assert torch.equal(model[NAME_B], b)
    assert model[f"{MODULE}.merged_A.weight"].shape == (3 * RANK, INPUTS)


def random_updates(ranks: list[int], seed: int = 0) -> list[lora.Weighted]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(ranks), generator=generator, dtype=torch.float64) + 0.1
    return [
        (
            float(w / weights.sum()),
            torch.randn(r, INPUTS, generator=generator, dtype=torch.float64),
            torch.randn(OUTPUTS, r, generator=generator, dtype=torch.float64),
        )
        for w, r in zip(weights, ranks, strict=True)
    ]


def product_sum(updates: list[lora.Weighted]) -> torch.Tensor:
    return sum(p * b @ a for p, a, b in updates)


@settings(max_examples=40, deadline=None)
@given(ranks=st.lists(st.integers(1, 8), min_size=1, max_size=5), rank=st.integers(1, 50), seed=st.integers(0, 99))
def test_refit_is_the_best_product_of_its_rank(ranks, rank, seed):
    """Eckart-Young: no product of this rank is nearer, and its distance is the norm of the singular values left out."""
    updates = random_updates(ranks, seed)
    wanted = product_sum(updates)
    a, b = lora.refit(updates, rank)
    assert a.shape == (rank, INPUTS)
    assert b.shape == (OUTPUTS, rank)
    u, sizes, v = torch.linalg.svd(wanted, full_matrices=False)
    torch.testing.assert_close((wanted - b @ a).norm(), sizes[rank:].square().sum().sqrt(), rtol=1e-8, atol=1e-8)
    best = (u[:, :rank] * sizes[:rank]) @ v[:rank]
    torch.testing.assert_close(b @ a, best, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-6, atol=1e-6)  # singular values split evenly


def test_svd_is_exact_when_the_rank_suffices(tmp_path):
    """All sites move B only, so the sum has the rank of one adapter."""
    model = start()
    base = artifact_path(tmp_path, save_tensors(tmp_path, model, "adapter"))
    updates = [model | {NAME_B: trained(model, "svd", site)[NAME_B]} for site in range(3)]
    terms = [
        (artifact_path(tmp_path, save_tensors(tmp_path, u, "update")), p) for u, p in zip(updates, WEIGHTS, strict=True)
    ]
    result = load_tensors(artifact_path(tmp_path, lora.aggregate_adapters(terms, base, "svd", tmp_path, 0)))
    wanted = sum(p * effective(u) for p, u in zip(WEIGHTS, updates, strict=True))
    torch.testing.assert_close(effective(result), wanted, rtol=1e-10, atol=1e-10)
    assert read_header(base).keys() == result.keys()


def test_svd_of_several_rounds_keeps_the_shapes(tmp_path):
    model = start()
    for number in range(1, 4):
        model, wanted = one_round(tmp_path, model, "svd", number)
        tail = torch.linalg.svdvals(wanted)[RANK:]
        torch.testing.assert_close((effective(model) - wanted).norm(), tail.norm(), rtol=1e-8, atol=1e-8)
    assert {n: t.shape for n, t in model.items()} == {n: t.shape for n, t in start().items()}


@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_stacking_is_exact_for_unequal_ranks_and_weights(ranks, seed):
    updates = random_updates(ranks, seed)
    a, b = lora.stacked(updates)
    assert a.shape[0] == b.shape[1] == sum(ranks)
    torch.testing.assert_close(b @ a, product_sum(updates), rtol=1e-10, atol=1e-10)


def test_residual_is_the_error_of_the_means():
    updates = random_updates([4, 4, 4])
    mean = lora.mean_of_factors(updates)
    a, b = lora.residual(updates, mean)
    torch.testing.assert_close(b @ a + mean[1] @ mean[0], product_sum(updates), rtol=1e-10, atol=1e-10)


def test_what_is_trained():
    names = [NAME_A, NAME_B, f"{MODULE}.merged.weight", f"{MODULE}.merged_A.weight", f"{MODULE}.merged_B.weight"]
    for method in lora.METHODS:
        expected = [NAME_B] if method == "ffa" else [NAME_A, NAME_B]
        assert [n for n in names if lora.is_trained(n, method)] == expected
    assert all(lora.is_trained(n, "full") for n in ("model.norm.weight", "buffer"))


def test_modules_come_in_order(tmp_path):
    names = [f"m.{k}.lora_{side}.weight" for k in (2, 0, 1) for side in "AB"]
    path = artifact_path(tmp_path, save_tensors(tmp_path, {n: torch.zeros(1) for n in names}, "adapter"))
    assert lora.modules_of(read_header(path)) == ["m.0", "m.1", "m.2"]


def test_fresh_pair_is_the_same_in_every_process():
    code = (
        "import sys, torch; from apps.artifacts.lora import fresh_pair;"
        " torch.manual_seed(99); sys.stdout.write(str(fresh_pair('m.q', 4, 6, 5, 3)[0].tolist()))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    a, b = lora.fresh_pair("m.q", 4, 6, 5, 3)
    assert told == str(a.tolist())
    assert float(a.abs().max()) <= 6**-0.5
    assert not b.any()
    assert not torch.equal(a, lora.fresh_pair("m.q", 4, 6, 5, 4)[0])
    assert not torch.equal(a, lora.fresh_pair("m.k", 4, 6, 5, 3)[0])


def test_each_of_many_modules_is_combined(tmp_path):
    pairs = {f"m.{k}": lora.fresh_pair(f"m.{k}", 2, 6, 5, k) for k in range(3)}
    model = {f"{m}.lora_{s}.weight": t for m, pair in pairs.items() for s, t in zip("AB", pair, strict=True)}
    base = artifact_path(tmp_path, save_tensors(tmp_path, model, "adapter"))
    updates = [{n: t + site + 1 for n, t in model.items()} for site in range(2)]
    terms = [(artifact_path(tmp_path, save_tensors(tmp_path, u, "update")), 0.5) for u in updates]
    result = load_tensors(artifact_path(tmp_path, lora.aggregate_adapters(terms, base, "fedex", tmp_path, 0)))
    for module in pairs:
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        wanted = sum(0.5 * u[b] @ u[a] for u in updates)
        torch.testing.assert_close(result[b] @ result[a] + lora.merged_product(module, result), wanted)

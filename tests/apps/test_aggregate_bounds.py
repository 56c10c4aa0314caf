"""What the server computes is finite before it becomes a model, and updates count as far as their bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from apps.aggregate import aggregate
from apps.artifacts.lora import is_trained
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.traffic import DELTA, rounded_copy
from apps.artifacts.weighted_sum import weighted_sum
from apps.base.errors import ModelNotFinite
from apps.base.identity import Place
from apps.base.versions import code_version

PLACE = Place(site="server", round=1)
METHODS = ("fedit", "ffa", "fedex", "flora", "svd")


def work_of(store: Path, method: str | None = None, traffic: str = "float32") -> Any:
    adapter = {"method": method} if method else None
    model = {"seed": 1, "adapter": adapter, "traffic": traffic}
    return {"store": str(store), "model": model, "threads": 1, "code_version": code_version()}


def base_in(store: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    tensors = {"m.lora_A.weight": torch.ones(2, 3, dtype=dtype), "m.lora_B.weight": torch.zeros(4, 2, dtype=dtype)}
    return {"artifact": save_tensors(store, tensors, "adapter")}


def update_of(store: Path, base: dict[str, Any], site: str, value: float, method: str = "full") -> dict[str, Any]:
    """A result of stage-in: every trained value moved by the same amount."""
    tensors = {n: t + value for n, t in load_tensors(artifact_path(store, base["artifact"])).items()}
    kept = {n: t for n, t in tensors.items() if is_trained(n, method)}
    norm = abs(value) * sum(t.numel() for t in kept.values()) ** 0.5
    return {
        "artifact": save_tensors(store, kept, "update"),
        "base": base["artifact"],
        "master": base["artifact"],
        "update_norm": norm,
        "manifest": {"site": site},
    }


def model_of(store: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_tensors(artifact_path(store, result["artifact"]))


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_an_update_whose_square_is_too_large_freezes_no_optimizer(rule, tmp_path):
    spec = {"name": rule, "rate": 0.1, "beta1": 0.9, "beta2": 0.0 if rule == "adagrad" else 0.99, "tau": 1e-3}
    base = base_in(tmp_path)
    updates = [update_of(tmp_path, base, site, value) for site, value in (("good", 0.01), ("evil", 1e20))]
    before = set(tmp_path.glob("*.safetensors"))
    with pytest.raises(
        ModelNotFinite, match=r"model 1 .* in tensor 'v/m.* the update of evil \(norm .*Model 0 is kept"
    ):
        aggregate(PLACE, work_of(tmp_path), base, [0.5, 0.5], 1, spec, *updates)
    assert set(tmp_path.glob("*.safetensors")) == before
    clipped = aggregate(PLACE, work_of(tmp_path), base, [0.5, 0.5], 1, spec, *updates, clips=[1.0, 2e-22])
    state = load_tensors(artifact_path(tmp_path, clipped["state"]))
    assert all(tensor.isfinite().all() and tensor.abs().max() < 1 for tensor in state.values())


@pytest.mark.parametrize("method", METHODS)
def test_products_of_adapters_are_finite(method, tmp_path):
    base = base_in(tmp_path)
    updates = [update_of(tmp_path, base, site, value, method) for site, value in (("good", 0.1), ("evil", 1e30))]
    act = lambda *given, **more: aggregate(PLACE, work_of(tmp_path, method), base, [0.5, 0.5], 1, None, *given, **more)  # noqa: E731
    if method in ("fedex", "svd"):
        with pytest.raises(ModelNotFinite, match=r"the cause is the update of evil"):
            act(*updates)
    clips = [1.0, 0.2 / 1e30]
    expected = act(updates[0], update_of(tmp_path, base, "evil", 0.2, method))
    for name, tensor in model_of(tmp_path, act(*updates, clips=clips)).items():
        torch.testing.assert_close(tensor, model_of(tmp_path, expected)[name], atol=1e-5, rtol=1e-4)


def test_sums_that_the_type_cannot_hold_are_refused(tmp_path):
    for tensor in (
        torch.full((3,), 6e4, dtype=torch.float16),
        torch.full((3,), 3e38, dtype=torch.bfloat16),
        torch.tensor([2**62], dtype=torch.int64),
        torch.tensor([100], dtype=torch.int8),
        torch.full((3,), 1.7e308, dtype=torch.float64),
    ):
        path = artifact_path(tmp_path, save_tensors(tmp_path, {"w": tensor}, "update"))
        assert weighted_sum([(path, 0.5), (path, 0.5)], tmp_path)
        with pytest.raises(ModelNotFinite):
            weighted_sum([(path, 1.0), (path, 1.0)], tmp_path)


def test_the_copy_that_travels_is_finite(tmp_path):
    model = save_tensors(tmp_path, {"w": torch.tensor([3.4e38])}, "model")
    with pytest.raises(ModelNotFinite, match="'w'"):
        rounded_copy(tmp_path, model)


def test_no_site_is_named_where_none_stands_out(tmp_path):
    base = base_in(tmp_path)
    updates = [update_of(tmp_path, base, site, 3e38) for site in ("a", "b")]
    with pytest.raises(ModelNotFinite, match=r"server, round 1: .*no update stands out.*clip_to_median"):
        aggregate(PLACE, work_of(tmp_path), base, [1.0, 1.0], 1, None, *updates)


def test_a_clipped_change_counts_with_its_factor(tmp_path):
    """Of whole tensors and of changes in bfloat16 over a float32 model."""
    base = base_in(tmp_path)
    updates = [update_of(tmp_path, base, site, value) for site, value in (("a", 1.0), ("b", 8.0))]
    whole = aggregate(PLACE, work_of(tmp_path), base, [0.5, 0.5], 1, None, *updates, clips=[1.0, 0.25])
    torch.testing.assert_close(model_of(tmp_path, whole)["m.lora_B.weight"], torch.full((4, 2), 1.5))
    for update, value in zip(updates, (1.0, 8.0), strict=True):
        change = {n: torch.full_like(t, value).bfloat16() for n, t in model_of(tmp_path, base).items()}
        update["artifact"] = save_tensors(tmp_path, change, DELTA)
    changes = aggregate(PLACE, work_of(tmp_path), base, [0.5, 0.5], 1, None, *updates, clips=[1.0, 0.25])
    torch.testing.assert_close(model_of(tmp_path, changes)["m.lora_A.weight"], torch.full((2, 3), 2.5))

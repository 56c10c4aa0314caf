"""The weighted sum over files equals one in memory, and needs the memory of a piece."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.artifacts import streams
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.weighted_sum import common_header, weighted_sum
from apps.base.errors import ArtifactError

PROJECT = Path(__file__).resolve().parents[3]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return artifact_path(folder, save_tensors(folder, tensors, "update"))


def models(count: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "w": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
            "b": torch.full((2,), k, dtype=dtype),
        }
        for k in range(count)
    ]


def summed(folder: Path, updates: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
    terms = [(saved(folder / str(k), update), w) for k, (update, w) in enumerate(zip(updates, weights, strict=True))]
    return load_tensors(artifact_path(folder, weighted_sum(terms, folder)))


def plain(updates: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, torch.Tensor]:
    return {
        name: sum(w * u[name].double() for u, w in zip(updates, weights, strict=True)).to(updates[0][name].dtype)
        for name in updates[0]
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_a_plain_mean_and_keeps_the_type(dtype, tmp_path):
    updates, weights = models(5, (33, 7), dtype), [0.1, 0.3, 0.2, 0.15, 0.25]
    found, expected = summed(tmp_path, updates, weights), plain(updates, weights)
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], tensor, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_narrow_types_are_rounded_once(tmp_path):
    """A sum in bfloat16 would lose every small term; the accumulator is wider."""
    updates = [{"w": torch.tensor([1.0 if k == 0 else 2**-9], dtype=torch.bfloat16)} for k in range(9)]
    assert summed(tmp_path, updates, [1.0] * 9)["w"].tolist() == [1 + 2**-6]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    weights=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_linear_in_the_weights_for_any_sum_of_them(shape, weights, dtype, seed, tmp_path_factory):
    updates = models(len(weights), shape, dtype, seed)
    found = summed(tmp_path_factory.mktemp("sum"), updates, weights)
    for name, tensor in plain(updates, weights).items():
        assert found[name].shape == tensor.shape
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_same_order_same_bits(tmp_path):
    updates, weights = models(7, (50, 50), torch.float32), [k / 28 for k in range(1, 8)]
    terms = [(saved(tmp_path / str(k), update), w) for k, (update, w) in enumerate(zip(updates, weights, strict=True))]
    one, two = weighted_sum(terms, tmp_path / "one"), weighted_sum(terms, tmp_path / "two", "adapter")
    assert one["sha256"] == two["sha256"]
    assert (one["kind"], two["kind"]) == ("model", "adapter")


def test_one_update_with_weight_one_comes_out_unchanged(tmp_path):
    path = saved(tmp_path, models(1, (9, 9), torch.bfloat16)[0])
    assert weighted_sum([(path, 1.0)], tmp_path)["sha256"] == path.stem


@pytest.mark.parametrize("numel", [streams.PIECE - 1, streams.PIECE, streams.PIECE + 1, 2 * streams.PIECE + 3])
def test_sizes_around_a_piece(numel, tmp_path):
    updates = [{"w": torch.arange(numel, dtype=torch.float32) * k} for k in (1, 3)]
    assert torch.equal(summed(tmp_path, updates, [0.5, 0.5])["w"], torch.arange(numel, dtype=torch.float32) * 2)


@settings(max_examples=30, deadline=None)
@given(numel=st.integers(0, 40), piece=st.integers(1, 17))
def test_size_of_a_piece_does_not_change_the_bits(numel, piece, tmp_path_factory):
    folder = tmp_path_factory.mktemp("piece")
    terms = [
        (saved(folder, {"w": u["w"]}), w)
        for u, w in zip(models(3, (numel,), torch.float32), (0.2, 0.3, 0.5), strict=True)
    ]
    whole = weighted_sum(terms, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", piece)
        assert weighted_sum(terms, folder)["sha256"] == whole["sha256"]


def test_integers_are_rounded_and_bools_take_the_majority(tmp_path):
    byte = torch.uint8
    updates = [
        {"steps": torch.tensor(steps), "small": torch.tensor(small, dtype=byte), "on": torch.tensor(on)}
        for steps, small, on in (([1, 10, -3], [250], [True, True, False]), ([2, 20, -4], [255], [True, False, False]))
    ]
    found = summed(tmp_path, updates, [0.25, 0.75])
    assert found["steps"].tolist() == [2, 18, -4]  # 1.75, 17.5 (to even), -3.75
    assert found["small"].tolist() == [254]  # 253.75
    assert found["on"].tolist() == [True, False, False]
    assert [found[n].dtype for n in ("steps", "small", "on")] == [torch.int64, torch.uint8, torch.bool]
    assert summed(tmp_path, updates, [0.5, 0.5])["on"].tolist() == [True, True, False]  # half is enough


def test_large_integers_stay_exact(tmp_path):
    updates = [{"n": torch.tensor([2**50 + 1])}] * 2
    assert summed(tmp_path, updates, [0.5, 0.5])["n"].tolist() == [2**50 + 1]


MISFITS = {
    "shape": {"w": torch.zeros(3, 2), "b": torch.zeros(2)},
    "type": {"w": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(2)},
    "missing": {"b": torch.zeros(2)},
    "extra": {"w": torch.zeros(2, 3), "b": torch.zeros(2), "c": torch.zeros(1)},
}


@pytest.mark.parametrize(("misfit", "named"), zip(MISFITS.values(), ["w", "w", "w", "c"], strict=True), ids=MISFITS)
def test_files_of_other_tensors_are_refused(misfit, named, tmp_path):
    fit, other = saved(tmp_path, {"w": torch.zeros(2, 3), "b": torch.zeros(2)}), saved(tmp_path, misfit)
    for act in (
        lambda: common_header([fit, fit, other]),
        lambda: weighted_sum([(fit, 0.5), (other, 0.5)], tmp_path / "out"),
    ):
        with pytest.raises(ArtifactError, match=f"tensor '{named}'") as caught:
            act()
        assert caught.value.file == str(other)
    assert not (tmp_path / "out").exists()


def test_update_that_vanishes_midway_is_named_not_the_store(tmp_path, monkeypatch):
    paths = [saved(tmp_path / "in", u) for u in models(2, (4,), torch.float32)]
    fill = streams._fill

    def vanishing(buffer: memoryview, path: Path, offset: int) -> None:
        paths[1].unlink(missing_ok=True)
        fill(buffer, path, offset)

    monkeypatch.setattr(streams, "_fill", vanishing)
    with pytest.raises(ArtifactError, match="cannot read") as caught:
        weighted_sum([(p, 0.5) for p in paths], tmp_path / "out")
    assert caught.value.file == str(paths[1])
    assert list((tmp_path / "out").iterdir()) == []


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from apps.artifacts.weighted_sum import weighted_sum
torch.set_num_threads(1)
folder = Path(sys.argv[1])
paths = sorted(folder.glob("*.safetensors"))
weighted_sum([(path, 1.0) for path in (folder / "small").glob("*")], folder / "warm")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
weighted_sum([(path, 1 / 16) for path in paths], folder / "out")
print(len(paths), peak() - before)
"""


def test_memory_stays_far_below_one_model(tmp_path):
    save_tensors(tmp_path / "small", {"w": torch.ones(10)}, "update")
    for k in range(16):
        save_tensors(tmp_path, {"w": torch.full((2_500, 4_000), float(k))}, "update")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    count, growth = map(int, done.stdout.split())
    assert count == 16
    assert growth < 0.25 * 40e6

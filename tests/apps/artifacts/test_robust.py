"""Robust rules against vectors that were computed by hand, over files in pieces, and through the server's app."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaigns import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.aggregate import aggregate
from apps.artifacts import robust, streams
from apps.artifacts.robust import best_scores, coefficients, geometric_median, gram_matrix, krum_scores, sorted_rows
from apps.artifacts.store import artifact_path, load_tensors, save_tensors
from apps.artifacts.traffic import DELTA
from apps.base.errors import ArtifactError
from apps.base.identity import Place
from apps.base.versions import code_version

X = torch.tensor([[1, 2], [1.2, 1.8], [0.8, 2.2], [1.1, 2.1], [10, -10]], dtype=torch.float64)
GRAM = (X @ X.T).tolist()
EXPECTED = {
    "median": (1.1, 2.0),
    "trimmed_mean": (1.1, 1.966667),
    "krum": (1.0, 2.0),
    "multi_krum": (1.05, 2.05),
    "geometric_median": (1.037085, 1.997391),
}


def near(weights: list[float]) -> Any:
    return pytest.approx((torch.tensor(weights, dtype=torch.float64) @ X).tolist(), abs=1e-6)


def test_scores_and_steps() -> None:
    assert krum_scores(GRAM, 1) == pytest.approx([0.10, 0.18, 0.18, 0.12, 441.68])
    assert best_scores(GRAM, 1, 3) == {0, 1, 3}  # the third has the score of the second
    assert near(geometric_median(GRAM, 1)) == (1.559499, 1.311332)
    assert near(geometric_median(GRAM, 2)) == (1.188825, 1.812541)
    assert sum(geometric_median(GRAM)) == pytest.approx(1.0)


def test_the_geometric_median_of_equal_updates_is_theirs() -> None:
    assert geometric_median([[4.0] * 3] * 3) == pytest.approx([1 / 3] * 3)
    assert geometric_median([[0.0] * 3] * 3) == pytest.approx([1 / 3] * 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 9))
def test_columns_are_sorted_whatever_the_number_of_rows(rows: int, columns: int, seed: int) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    assert torch.equal(sorted_rows(values), values.sort(dim=0).values)


def results(store: Path, base: dict[str, torch.Tensor], delta: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A model and stage-in results whose changes are the vectors in every tensor; one of whole numbers follows them."""
    first = {"artifact": save_tensors(store, base, "model")}
    updates = []
    for k, row in enumerate(X.float()):
        tensors = {"w": row.repeat(3), "v": row.clone()}
        if not delta:
            tensors = {name: base[name] + change for name, change in tensors.items()} | {"n": torch.tensor([k, 9 - k])}
        else:
            tensors = {name: change.bfloat16() for name, change in tensors.items()}
        artifact = save_tensors(store, tensors, DELTA if delta else "update")
        said = {"base": first["artifact"], "master": first["artifact"], "manifest": {"site": f"s{k}"}}
        updates.append({"artifact": artifact, "update_norm": 1.0, **said})
    return first, updates


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_rules_stream_over_files_of_models_and_of_changes(
    name: str, delta: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE", 11)  # two elements of each of five files
    base = {"w": torch.full((6,), 3.0), "v": torch.tensor([-1.0, 0.0]), "n": torch.tensor([0, 9])}
    first, updates = results(tmp_path, base, delta)
    work: Any = {"store": str(tmp_path), "model": {"adapter": None}, "threads": 1, "code_version": code_version()}
    spec: Any = {"name": name, "bad": 1}
    before = set(tmp_path.iterdir())

    def made(rule: Any) -> dict[str, torch.Tensor]:
        place = Place(site="server", round=1)
        result = aggregate(place, work, first, [0.2] * 5, 1, rule, *updates, robust=spec)
        assert set(result["coefficients"]) == (
            set() if name in robust.COORDINATE_RULES else {f"s{k}" for k in range(5)}
        )
        assert sum(result["coefficients"].values()) == pytest.approx(float(bool(result["coefficients"])))
        return load_tensors(artifact_path(tmp_path, result["artifact"]))

    expected = torch.tensor(EXPECTED[name])
    tolerance = {"atol": 0.02 if delta else 1e-5, "rtol": 0.0}  # the changes are rounded to bfloat16
    plain = made(None)
    torch.testing.assert_close(plain["w"], 3 + expected.repeat(3), **tolerance)
    torch.testing.assert_close(plain["v"], torch.tensor([-1.0, 0.0]) + expected, **tolerance)
    whole = {"median": [2, 7], "trimmed_mean": [2, 7], "krum": [0, 9], "multi_krum": [2, 8], "geometric_median": [1, 8]}
    assert plain["n"].tolist() == ([0, 9] if delta else whole[name])  # changes have no whole numbers
    stepped = made({"name": "momentum", "rate": 2.0, "beta1": 0.0, "beta2": 0.0, "tau": 0.0})
    torch.testing.assert_close(stepped["w"], 3 + 2 * expected.repeat(3), **tolerance)
    new = {path.suffix for path in set(tmp_path.iterdir()) - before}
    assert new == {".safetensors"}  # two models and the state of the optimizer, nothing else


def test_memory_does_not_grow_with_the_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 64)
    base = save_tensors(tmp_path, {"w": torch.zeros(1000)}, "model")
    for count in (2, 8, 64):
        artifacts = [save_tensors(tmp_path, {"w": torch.full((1000,), float(k))}, "update") for k in range(count)]
        files = [artifact_path(tmp_path, artifact) for artifact in artifacts]
        inputs = robust.open_inputs([(path, 1.0) for path in files], artifact_path(tmp_path, base))
        assert max(rows.numel() for _, _, rows in robust.rows_of(inputs, "w")) <= 64
        made = robust.coordinatewise(
            files, artifact_path(tmp_path, base), {"name": "median", "bad": 1}, tmp_path, "model"
        )
        values = load_tensors(artifact_path(tmp_path, made))["w"]
        assert values.eq((count - 1) / 2).all()  # of an even number the mean of the two in the middle


def test_distances_of_small_changes_to_a_large_model_are_exact(tmp_path: Path) -> None:
    base = save_tensors(tmp_path, {"w": torch.full((1000,), 1e3, dtype=torch.float64)}, "model")
    draw = random.Random(1)
    changes = torch.tensor([[draw.gauss(0, 1e-6) for _ in range(1000)] for _ in range(3)], dtype=torch.float64)
    files = [artifact_path(tmp_path, save_tensors(tmp_path, {"w": 1e3 + row}, "update")) for row in changes]
    torch.testing.assert_close(
        torch.tensor(gram_matrix(files, artifact_path(tmp_path, base))),
        (changes @ changes.T).float(),
        rtol=1e-6,
        atol=1e-17,
    )


def test_products_beyond_float64_are_refused(tmp_path: Path) -> None:
    base = save_tensors(tmp_path, {"w": torch.zeros(2, dtype=torch.float64)}, "model")
    path = artifact_path(
        tmp_path, save_tensors(tmp_path, {"w": torch.full((2,), 1e200, dtype=torch.float64)}, "update")
    )
    with pytest.raises(ArtifactError, match="too large for a robust rule"):
        gram_matrix([path], artifact_path(tmp_path, base))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_update_of_any_size_moves_no_rule_far(name: str) -> None:
    for size in (1e3, 1e10, 1e18):
        rows = torch.cat([X[:4], torch.tensor([[size, -size]], dtype=torch.float64)])
        spec: Any = {"name": name, "bad": 1}
        if name in robust.COORDINATE_RULES:
            found = robust.middle(sorted_rows(rows), spec)
        else:
            found = torch.tensor(coefficients((rows @ rows.T).tolist(), spec), dtype=torch.float64) @ rows
        assert float((found - torch.tensor([1.0, 2.0], dtype=torch.float64)).norm()) < 0.5, (name, size)


def reference(rows: np.ndarray, spec: Any) -> np.ndarray:
    """The rules as their papers write them, with numpy and all updates in memory."""
    count, bad = len(rows), spec["bad"]
    if spec["name"] == "median":
        return np.median(rows, axis=0)
    if spec["name"] == "trimmed_mean":
        return np.sort(rows, axis=0)[bad : count - bad].mean(0)
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    scores = np.sort(squares, axis=1)[:, 1 : count - bad - 1].sum(1)  # without itself
    kept = 1 if spec["name"] == "krum" else count - bad - 2
    return rows[np.argsort(scores)[:kept]].mean(0)


def distances(rows: np.ndarray, point: np.ndarray) -> float:
    return float(np.linalg.norm(rows - point, axis=1).sum())


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(EXPECTED)),
    bad=st.integers(1, 4),
    more=st.integers(0, 12),
    width=st.integers(1, 9),
    scale=st.sampled_from([1e-6, 1.0, 1e12]),
    seed=st.integers(0, 10**6),
)
def test_any_order_of_the_files_gives_the_rule_of_the_papers(
    name: str, bad: int, more: int, width: int, scale: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count, folder, rng = 2 * bad + 3 + more, tmp_path_factory.mktemp("any"), np.random.default_rng(seed)
    rows = rng.normal(size=(count, 7)) * scale
    rows[:bad] *= 10.0 ** rng.integers(0, 9, size=(bad, 1))
    first = {"artifact": save_tensors(folder, {"w": torch.zeros(7, dtype=torch.float64)}, "model")}
    files = [save_tensors(folder, {"w": torch.from_numpy(row)}, "update") for row in rows]
    updates = [{"artifact": file, "manifest": {"site": f"s{k}"}} for k, file in enumerate(files)]
    work: Any = {"store": str(folder), "model": {"adapter": None}, "threads": 1, "code_version": code_version()}
    spec: Any = {"name": name, "bad": bad}

    def made(order: list[int]) -> tuple[np.ndarray, dict[str, float]]:
        place, ordered = Place(site="server", round=1), [updates[k] for k in order]
        found = aggregate(place, work, first, [0.0] * count, 1, None, *ordered, robust=spec)
        return load_tensors(artifact_path(folder, found["artifact"]))["w"].numpy(), found["coefficients"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", width * count)
        plain, chosen = made(list(range(count)))
        turned, chosen_too = made(rng.permutation(count).tolist())
    size = float(np.abs(rows[bad:]).max())
    assert np.isfinite(plain).all() and chosen.keys() == chosen_too.keys()
    np.testing.assert_allclose(turned, plain, rtol=1e-6, atol=1e-6 * size)
    if name != "geometric_median":
        np.testing.assert_allclose(plain, reference(rows, spec), rtol=1e-9, atol=1e-9 * size)
        return
    least = distances(rows, plain)
    for point in (*rows, np.median(rows, axis=0), *(plain + 1e-2 * size * rng.normal(size=(20, 7)))):
        assert least <= distances(rows, point) * (1 + 1e-6)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from apps.artifacts.robust import coordinatewise, gram_matrix
torch.set_num_threads(1)
base, *files = sorted(Path(sys.argv[1]).glob("*.safetensors"))
def use(count):
    for name in ("median", "trimmed_mean"):
        coordinatewise(files[:count], base, {"name": name, "bad": 1}, sys.argv[1] + "/out", "model")
    gram_matrix(files[:count], base)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
few, many = use(17), use(len(files))
print(len(files), many - few)
"""


def test_the_peak_of_the_memory_is_that_of_few_sites(tmp_path: Path) -> None:
    for k in range(69):
        save_tensors(tmp_path, {"w": torch.full((600_000,), float(k))}, "update")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    count, growth = map(int, done.stdout.split())
    assert count == 68 and growth < 8e6  # the files more have 122 MB

"""Robust rules: combinations of updates that a few bad ones cannot lead far away, streamed over files.

With the changes x_1 ... x_n of n updates to the same model, of which at most f are bad:

====================  =======================================================================  ==========
rule                  result                                                                   bears
====================  =======================================================================  ==========
``median``            of each coordinate; for even n the mean of the two in the middle         2 f < n
``trimmed_mean``      of each coordinate, without the f lowest and the f highest values         2 f < n
``krum``              the update with the least s_i = sum of the n-f-2 smallest ||x_i-x_j||^2   2 f + 3 <= n
``multi_krum``        the mean of the n-f-2 updates with the least s_i                          2 f + 3 <= n
``geometric_median``  argmin_z sum_k ||x_k - z||, by Weiszfeld's iteration from the mean         2 f < n
====================  =======================================================================  ==========

The first two read a piece of every file at once, so many elements that all together are as large as one piece
elsewhere. The others are sums ``sum_k lambda_k x_k``: one pass accumulates the Gram matrix ``K = X X^T`` of the changes
in float64, ``||x_k - z||^2 = K_kk - 2 (K lambda)_k + lambda^T K lambda`` gives every distance, and the ordinary
weighted sum makes the model. So memory grows neither with the number of sites nor with the size of the model, but for
n^2 numbers.

Sources: Yin et al., arXiv 1803.01498 (median, trimmed mean); Blanchard et al., NeurIPS 2017 (Krum); Pillutla et al.,
arXiv 1912.13445 (geometric median, smoothed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from apps.artifacts import streams
from apps.artifacts.store import Artifact, Shapes, layout, raw_bytes, write_artifact
from apps.artifacts.streams import PieceReader, piece_ranges
from apps.artifacts.weighted_sum import Inputs, narrowed, open_inputs
from apps.base.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import torch

COORDINATE_RULES = ("median", "trimmed_mean")
MOST_EXCHANGED = 16  # rows
SMOOTHING = 1e-6  # least distance in Weiszfeld's iteration
MOST_STEPS, SETTLED = 1000, 1e-10  # of Weiszfeld's iteration: its length, and the change of the weights at its end
Ordered = TypeVar("Ordered", "torch.Tensor", "np.ndarray[Any, Any]")


class RobustSpec(TypedDict):
    """A robust rule in plain values."""

    name: str
    bad: int  # updates that may be bad


def middle(ordered: Ordered, spec: RobustSpec) -> Ordered:
    """Return the median or the trimmed mean of the rows of a matrix whose columns are sorted.

    Args:
        ordered: one row for each update, in float32 or float64.
        spec: ``median`` or ``trimmed_mean``.
    """
    count = len(ordered)
    if spec["name"] == "median":
        return ordered[(count - 1) // 2] / 2 + ordered[count // 2] / 2  # halved first: the sum might overflow
    kept = ordered[spec["bad"] : count - spec["bad"]]
    return (kept / len(kept)).sum(0)


def coordinatewise(files: Sequence[Path], base: Path, spec: RobustSpec, store: str | Path, kind: str) -> Artifact:
    """Write the model whose every coordinate is the rule's of the updates.

    Args:
        files: updates, all of whole tensors, or all of changes in bfloat16 to a float32 model.
        base: path of the model that they started from; it has all tensors.
        spec: ``median`` or ``trimmed_mean``.
        store: folder of the result.
        kind: of the result, for people.

    Raises:
        ArtifactError: the files do not fit the base.
        ModelNotFinite: the result has values that are not finite.
    """
    inputs = open_inputs([(path, 1.0) for path in files], base)
    shapes: Shapes = {name: (found.dtype, found.shape) for name, found in inputs.header.items()}
    content = ((name, _pieces(inputs, name, spec)) for name in layout(shapes)[1])
    return write_artifact(store, shapes, content, kind, finite=True)


def _pieces(inputs: Inputs, name: str, spec: RobustSpec) -> Iterator[memoryview]:
    """Yield the raw bytes of one tensor of the result."""
    if name not in inputs.combined:
        yield from inputs.pieces(name)
        return
    reader, target = PieceReader(), inputs.header[name]
    changes = inputs.headers[0][name].dtype != target.dtype
    for start, stop, rows in rows_of(inputs, name):
        value = middle(sorted_rows(rows), spec)
        if changes:
            value = value + reader.read(inputs.base, target, start, stop)
        yield raw_bytes(narrowed(value, target))


def rows_of(inputs: Inputs, name: str, exact: bool = False) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield the pieces of one tensor of all files: first element, end, and a matrix with one row for each file.

    Args:
        inputs: the files.
        name: of the tensor.
        exact: in float64; else in the type of an accumulator. The next piece overwrites the matrix.
    """
    import torch

    count, numel = len(inputs.terms), inputs.header[name].numel
    wide = exact or inputs.header[name].dtype == "F64" or not inputs.header[name].floating
    width = max(1, min(streams.PIECE // count, numel))
    rows, reader = torch.empty(count, width, dtype=torch.float64 if wide else torch.float32), PieceReader()
    for start, stop in piece_ranges(numel, width):
        for row, (path, _), header in zip(rows, inputs.terms, inputs.headers, strict=True):
            row[: stop - start] = reader.read(path, header[name], start, stop)
        yield start, stop, rows[:, : stop - start]


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return a matrix with its columns sorted; of few rows by exchanges of whole rows, which is many times faster."""
    import torch

    count = len(rows)
    if count > MOST_EXCHANGED:
        return rows.sort(dim=0).values
    ordered = list(rows)
    for turn in range(count):
        for low in range(turn % 2, count - 1, 2):  # odd-even transposition
            one, other = ordered[low], ordered[low + 1]
            ordered[low], ordered[low + 1] = torch.minimum(one, other), torch.maximum(one, other)
    return torch.stack(ordered)


def gram_matrix(files: Sequence[Path], base: Path) -> list[list[float]]:
    """Return the matrix of the inner products of the updates' changes, over all floating-point tensors.

    Args:
        files: updates, all of whole tensors, or all of changes in bfloat16 to a float32 model.
        base: path of the model that they started from.

    Raises:
        ArtifactError: the files do not fit the base, or a product is not finite.
    """
    import torch

    inputs = open_inputs([(path, 1.0) for path in files], base)
    gram, reader = torch.zeros(len(files), len(files), dtype=torch.float64), PieceReader()
    for name in sorted(inputs.combined):
        spec = inputs.header[name]
        if not spec.floating:
            continue
        whole = inputs.headers[0][name].dtype == spec.dtype
        for start, stop, rows in rows_of(inputs, name, exact=True):
            changes = rows - reader.read(base, spec, start, stop).double() if whole else rows
            gram += changes @ changes.T
    if not bool(gram.isfinite().all()):
        raise ArtifactError("the distances between the updates are too large for a robust rule")
    found: list[list[float]] = gram.tolist()
    return found


def coefficients(gram: Sequence[Sequence[float]], spec: RobustSpec) -> list[float]:
    """Return lambda of a rule that is a sum of the updates; they sum to one.

    Args:
        gram: inner products of the changes.
        spec: ``krum``, ``multi_krum`` or ``geometric_median``.
    """
    count = len(gram)
    if spec["name"] == "geometric_median":
        return geometric_median(gram)
    chosen = best_scores(gram, spec["bad"], 1 if spec["name"] == "krum" else count - spec["bad"] - 2)
    return [1 / len(chosen) if k in chosen else 0.0 for k in range(count)]


def krum_scores(gram: Sequence[Sequence[float]], bad: int) -> list[float]:
    """Return for each update the sum of the n-f-2 smallest squared distances to the others."""
    count = len(gram)
    scores = []
    for i in range(count):
        squares = sorted(max(0.0, gram[i][i] + gram[j][j] - 2 * gram[i][j]) for j in range(count) if j != i)
        scores.append(sum(squares[: count - bad - 2]))
    return scores


def best_scores(gram: Sequence[Sequence[float]], bad: int, kept: int) -> set[int]:
    """Return the numbers of the updates with the least scores; of equal ones, up to rounding, the first."""
    scores = [float(f"{score:.9g}") for score in krum_scores(gram, bad)]
    return set(sorted(range(len(scores)), key=lambda k: (scores[k], k))[:kept])


def geometric_median(gram: Sequence[Sequence[float]], steps: int = MOST_STEPS) -> list[float]:
    """Return lambda of Weiszfeld's iteration from the mean: ``lambda_k <- (1/d_k) / sum 1/d_j``.

    Args:
        gram: inner products of the changes.
        steps: most iterations.
    """
    import numpy as np

    products = np.asarray(gram, np.float64)
    weights = np.full(len(products), 1 / len(products))
    for _ in range(steps):
        along = products @ weights
        squares = np.diag(products) - 2 * along + weights @ along
        inverse = 1 / np.maximum(np.sqrt(np.maximum(squares, 0.0)), SMOOTHING)
        before, weights = weights, inverse / inverse.sum()
        if np.abs(weights - before).max() < SETTLED:
            break
    found: list[float] = weights.tolist()
    return found


def by_site(coefficients: Sequence[float], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the coefficients by the sites of stage-in results, for the journal."""
    return {result["manifest"]["site"]: value for result, value in zip(results, coefficients, strict=True)}

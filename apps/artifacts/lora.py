"""Federated LoRA: rules that combine the adapters of several sites; W = W0 + s B A with s = alpha / rank.

The product of the mean A and the mean B is not the mean of the products. There are five server rules; p_k are the
weights of the sites and sum to one, all sites start a round from the same A and B:

========  ==============================================================  =======================================
method    rule                                                            its product against sum p_k B_k A_k
========  ==============================================================  =======================================
``fedit``  A = sum p_k A_k, B = sum p_k B_k                                off by sum p_k (B_k - B)(A_k - A)
``ffa``    A stays at its first value, B = sum p_k B_k                     equal, with half of the parameters
``flora``  stack [A_k], [p_k B_k], merge it into W0, restart the adapters  equal; the download grows every round
``fedex``  as fedit, and merge the difference of the products into W0      equal; the download grows every round
``svd``    best rank-r product: truncated SVD of sum p_k B_k A_k           equal up to the truncation
========  ==============================================================  =======================================

Sources: fedit Zhang et al. (arXiv 2305.05644); ffa Sun et al. (arXiv 2403.12313); flora Wang et al.
(arXiv 2409.05976); fedex Singhal et al. (arXiv 2410.09432); svd Bai et al., FlexLoRA (arXiv 2402.11505).

What is merged into W0 is sent as a frozen pair ``merged_A``, ``merged_B`` beside the adapter (exact, low rank), or as
one dense ``merged`` matrix once that is smaller. So a model artifact is complete: W = W0 + s (merged + B A).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.store import Artifact, Header, TensorSpec, read_header, save_tensors
from apps.artifacts.streams import read_tensor
from apps.artifacts.weighted_sum import Term, common_header, weighted_sum
from apps.base.errors import ModelNotFinite

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("fedit", "ffa", "flora", "fedex", "svd")
Pair = tuple["Tensor", "Tensor"]  # A (rank, in), B (out, rank)
Weighted = tuple[float, "Tensor", "Tensor"]  # p_k, A_k, B_k


def is_trained(name: str, method: str) -> bool:
    """Return whether a tensor of a model artifact is trained at the sites and is part of an update."""
    if method == "full":
        return True
    return ".merged" not in name and not (method == "ffa" and ".lora_A." in name)


def modules_of(header: Header) -> list[str]:
    """Return the prefixes of the adapted modules, sorted."""
    return sorted(name.removesuffix(".lora_B.weight") for name in header if name.endswith(".lora_B.weight"))


def fresh_pair(module: str, rank: int, inputs: int, outputs: int, seed: int) -> Pair:
    """Return a new adapter: A uniform in +-1/sqrt(inputs) as in peft, B zero; the same for all sites.

    Args:
        module: prefix of the adapted module.
        rank: of the adapter.
        inputs: columns of A.
        outputs: rows of B.
        seed: of the campaign.
    """
    import torch

    digest = hashlib.sha256(f"{seed}/{module}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(inputs)
    a = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound
    return a, torch.zeros(outputs, rank)


def mean_of_factors(updates: Sequence[Weighted]) -> Pair:
    """Return the mean A and the mean B."""
    a = sum(p * a_k for p, a_k, _ in updates)
    b = sum(p * b_k for p, _, b_k in updates)
    return a, b  # type: ignore[return-value]


def stacked(updates: Sequence[Weighted]) -> Pair:
    """Return factors whose product is exactly ``sum p_k B_k A_k``; only B carries the weights."""
    import torch

    return torch.cat([a_k for _, a_k, _ in updates]), torch.cat([p * b_k for p, _, b_k in updates], dim=1)


def residual(updates: Sequence[Weighted], mean: Pair) -> Pair:
    """Return factors of ``sum p_k B_k A_k - B A`` for the mean factors."""
    return stacked([*updates, (-1.0, *mean)])


def refit(updates: Sequence[Weighted], rank: int) -> Pair:
    """Return factors of the best rank-``rank`` approximation of ``sum p_k B_k A_k``, singular values split evenly.

    The stacked factors are reduced by QR first, so that no matrix of the size of W is formed. A rank larger than
    that of W is padded with zeros.
    """
    import torch
    from torch.nn.functional import pad

    a, b = stacked(updates)
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    product = r_b @ r_a.T
    if not bool(product.isfinite().all()):  # the decomposition would not converge
        raise ModelNotFinite("values that are not finite in the product of the factors")
    u, sizes, v = torch.linalg.svd(product)
    root = sizes[:rank].sqrt()
    kept = len(root)
    short = rank - kept
    return pad(root[:, None] * (v[:kept] @ q_a.T), (0, 0, 0, short)), pad((q_b @ u[:, :kept]) * root, (0, short))


def combine(method: str, updates: Sequence[Weighted], first: Pair, restart: Pair) -> tuple[Pair, Pair | None]:
    """Return the new adapter of one module, and the factors to merge into W0 or None.

    Args:
        method: one of ``METHODS``.
        updates: per site its weight and factors.
        first: the factors the sites started from.
        restart: a fresh pair, used by ``flora``.
    """
    if method == "flora":
        return restart, stacked(updates)
    if method == "svd":
        return refit(updates, first[0].shape[0]), None
    mean = mean_of_factors(updates)
    if method == "ffa":
        return (first[0], mean[1]), None
    return mean, residual(updates, mean) if method == "fedex" else None


def aggregate_adapters(
    terms: Sequence[Term], base: Path, method: str, store: str | Path, seed: int, clips: Sequence[float] = ()
) -> Artifact:
    """Write the next global adapter from the sites' adapters.

    Args:
        terms: (update file, weight); weights sum to one.
        base: path of the global model that the updates started from.
        method: one of ``METHODS``.
        store: folder of the result.
        seed: of adapters that restart.
        clips: factors on the changes of the factors A and B; none: all count whole. Not for ``fedit``, which is a sum.

    Raises:
        ArtifactError: the files do not hold the same tensors.
        ModelNotFinite: a product of the factors, or their sum, is not finite.
    """
    if method == "fedit":
        return weighted_sum(terms, store, "adapter")
    common_header([path for path, _ in terms])
    factors = clips or [1.0] * len(terms)
    updates = [(p, clip, path, read_header(path)) for (path, p), clip in zip(terms, factors, strict=True)]
    header, tensors = read_header(base), dict[str, "Tensor"]()
    for module in modules_of(header):
        tensors |= _combine_module(module, updates, base, header, method, seed)
    return save_tensors(store, tensors, "adapter", finite=True)


def _combine_module(
    module: str,
    updates: Sequence[tuple[float, float, Path, Header]],  # weight, factor on the change
    base: Path,
    header: Header,
    method: str,
    seed: int,
) -> dict[str, Tensor]:
    name_a, name_b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    first = read_tensor(base, header[name_a]), read_tensor(base, header[name_b])
    weighted = [
        (p, _clipped(first[0], path, h.get(name_a), clip), _clipped(first[1], path, h[name_b], clip))
        for p, clip, path, h in updates
    ]
    rank, inputs = first[0].shape
    a, b = fresh_pair(module, rank, inputs, first[1].shape[0], seed)
    pair, extra = combine(method, weighted, first, (a.to(first[0].dtype), b.to(first[1].dtype)))
    merged = {n: read_tensor(base, s) for n, s in header.items() if n.startswith(f"{module}.merged")}
    return {name_a: pair[0], name_b: pair[1], **_merge(module, merged, extra)}


def _clipped(first: Tensor, path: Path, spec: TensorSpec | None, clip: float) -> Tensor:
    """Return a factor of an update with a part of its change; the first one where it is not trained."""
    if spec is None:
        return first
    tensor = read_tensor(path, spec)
    return tensor if clip == 1.0 else first + clip * (tensor - first)


def _merge(module: str, merged: dict[str, Tensor], extra: Pair | None) -> dict[str, Tensor]:
    """Add factors to the tensors merged so far: a stacked pair, or a dense matrix once that is smaller."""
    import torch

    if extra is None:
        return merged
    a, b = extra
    dense, name_a, name_b = f"{module}.merged.weight", f"{module}.merged_A.weight", f"{module}.merged_B.weight"
    if dense in merged:
        return {dense: merged[dense] + b @ a}
    if name_a in merged:
        a, b = torch.cat([merged[name_a], a]), torch.cat([merged[name_b], b], dim=1)
    if a.numel() + b.numel() >= a.shape[1] * b.shape[0]:
        return {dense: b @ a}
    return {name_a: a, name_b: b}


def merged_product(module: str, tensors: dict[str, Tensor]) -> Tensor | None:
    """Return the dense matrix that is merged into W0 of a module (before the factor s), or None."""
    if f"{module}.merged.weight" in tensors:
        return tensors[f"{module}.merged.weight"]
    if f"{module}.merged_A.weight" in tensors:
        return tensors[f"{module}.merged_B.weight"] @ tensors[f"{module}.merged_A.weight"]
    return None

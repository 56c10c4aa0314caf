"""Optimisers at the server: the mean of the sites' models serves as a gradient, streamed over files in pieces.

With g = x - c, where x is the previous model and c the combination that plain averaging would make the next one:

============  ==========================================================================  ===================
rule          state                                                                       step
============  ==========================================================================  ===================
``momentum``  m <- b1 m - g                                                               x + rate m
``nesterov``  m <- b1 m + g                                                               x - rate (g + b1 m)
``adagrad``   m <- b1 m - (1 - b1) g;  v <- v + g^2                                       x + rate m / (sqrt(v) + tau)
``adam``      m as before;  v <- b2 v + (1 - b2) g^2                                      same
``yogi``      m as before;  v <- v - (1 - b2) g^2 sign(v - g^2)                           same
============  ==========================================================================  ===================

m starts at 0 and v at tau^2, without bias correction. Sources: Hsu et al., arXiv 1909.06335 (momentum); Douillard et
al., DiLoCo, arXiv 2311.08105 (nesterov); Reddi et al., arXiv 2003.00295 (the others).

The state is an artifact of float32 tensors ``m/NAME`` and ``v/NAME`` that belongs to one version of the model. There
are two passes over the inputs, one to write the state and one to write the model: the memory needed is that of a few
pieces, for any number of sites and any size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from apps.artifacts.store import Artifact, Header, Shapes, artifact_path, layout, raw_bytes, read_header, write_artifact
from apps.artifacts.streams import PieceReader, piece_ranges
from apps.artifacts.weighted_sum import Inputs, Term, combined_piece, open_inputs
from apps.base.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import torch

MOMENTS = {"momentum": "m", "nesterov": "m", "adagrad": "mv", "adam": "mv", "yogi": "mv"}
Array = TypeVar("Array", "torch.Tensor", "np.ndarray[Any, Any]")


class ServerRuleSpec(TypedDict):
    """A server rule in plain values."""

    name: str
    rate: float
    beta1: float
    beta2: float
    tau: float


def optimizer_step(
    terms: Sequence[Term], base: Path, state: Path | None, rule: ServerRuleSpec, store: str | Path, kind: str
) -> tuple[Artifact, Artifact]:
    """Apply one step of a server rule.

    Args:
        terms: (file, weight) of the combination c; a tensor that not all files have is kept from ``base``.
        base: path of the previous model.
        state: path of the state that belongs to ``base``; None: a fresh state.
        rule: with its constants.
        store: folder of the results.
        kind: of the new model, for people.

    Returns:
        The model and the state that belongs to it.

    Raises:
        ArtifactError: the files do not fit each other.
        ModelNotFinite: the model or a moment would not be finite.
    """
    inputs = open_inputs(terms, base)
    moments: Shapes = {
        f"{letter}/{name}": ("F32", inputs.header[name].shape)
        for letter in MOMENTS[rule["name"]]
        for name in inputs.combined
        if inputs.header[name].floating
    }
    before = _require_state(state, moments)
    states = ((key, _moment_pieces(key, inputs, state, before, rule)) for key in layout(moments)[1])
    new_state = write_artifact(store, moments, states, "optimizer", finite=True)
    path = artifact_path(store, new_state)
    header = read_header(path)
    shapes: Shapes = {name: (spec.dtype, spec.shape) for name, spec in inputs.header.items()}
    stepped = ((name, _model_pieces(name, inputs, path, header, rule)) for name in layout(shapes)[1])
    return write_artifact(store, shapes, stepped, kind, finite=True), new_state


def _require_state(state: Path | None, moments: Shapes) -> Header:
    header = read_header(state) if state else {}
    if state and {name: (spec.dtype, spec.shape) for name, spec in header.items()} != moments:
        raise ArtifactError("the optimizer state belongs to another model or another rule", file=str(state))
    return header


def _moment_pieces(
    key: str, inputs: Inputs, state: Path | None, before: Header, rule: ServerRuleSpec
) -> Iterator[memoryview]:
    """Yield one tensor of the new state in pieces."""
    import torch

    letter, name = key.split("/", 1)
    reader = PieceReader()
    for start, stop in piece_ranges(inputs.header[name].numel):
        g = _gradient(inputs, name, reader, start, stop)
        if state:
            old = reader.read(state, before[key], start, stop).clone()
        else:
            old = torch.full_like(g, rule["tau"] ** 2 if letter == "v" else 0.0)
        yield raw_bytes(first_moment(old, g, rule) if letter == "m" else second_moment(old, g, rule))


def _model_pieces(name: str, inputs: Inputs, state: Path, header: Header, rule: ServerRuleSpec) -> Iterator[memoryview]:
    """Yield one tensor of the new model in pieces; integer tensors are the plain combination."""
    spec = inputs.header[name]
    if name not in inputs.combined or not spec.floating:
        yield from inputs.pieces(name)
        return
    reader = PieceReader()
    for start, stop in piece_ranges(spec.numel):
        g = _gradient(inputs, name, reader, start, stop)
        m = reader.read(state, header[f"m/{name}"], start, stop).clone()
        v = reader.read(state, header[f"v/{name}"], start, stop).clone() if "v" in MOMENTS[rule["name"]] else None
        x = reader.read(inputs.base, spec, start, stop)
        yield raw_bytes((x.to(m.dtype) + change(g, m, v, rule)).to(x.dtype))


def _gradient(inputs: Inputs, name: str, reader: PieceReader, start: int, stop: int) -> torch.Tensor:
    """Return g = x - c in float32."""
    terms = [(inputs.base, 1.0), *((path, -weight) for path, weight in inputs.terms)]
    specs = [header[name] for header in (inputs.header, *inputs.headers)]
    return combined_piece(terms, specs, reader, start, stop, narrow=False).float()


# The formulas are written for torch tensors and NumPy arrays alike: the virtual engine of the studies uses them too.


def first_moment(old: Array, g: Array, rule: ServerRuleSpec) -> Array:
    """Return m after a step, from m before it and the gradient."""
    beta = rule["beta1"]
    if rule["name"] == "nesterov":
        return beta * old + g
    return beta * old - (g if rule["name"] == "momentum" else (1 - beta) * g)


def second_moment(old: Array, g: Array, rule: ServerRuleSpec) -> Array:
    """Return v after a step, from v before it and the gradient."""
    square, beta = g * g, rule["beta2"]
    match rule["name"]:
        case "adagrad":
            return old + square
        case "adam":
            return beta * old + (1 - beta) * square
        case "yogi":
            rest = old - square
            return old - (1 - beta) * square * ((rest > 0) * 1.0 - (rest < 0) * 1.0)
    raise ValueError(f"{rule['name']} has no second moment")


def change(g: Array, m: Array, v: Array | None, rule: ServerRuleSpec) -> Array:
    """Return the change of the model, from the gradient and the moments after it."""
    if rule["name"] == "nesterov":
        return -rule["rate"] * (g + rule["beta1"] * m)
    if v is None:
        return rule["rate"] * m
    return rule["rate"] * m / (v**0.5 + rule["tau"])

"""The update pipeline: stages in order, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from apps.pipeline import run_pipeline


def test_no_stages_change_nothing():
    tensors = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert dict(run_pipeline(tensors.items(), [])) == tensors


def test_stages_run_in_order_and_tensor_by_tensor():
    seen = []

    def double(stream) -> Iterator:
        for name, tensor in stream:
            seen.append(f"double {name}")
            yield name, tensor * 2

    def add(stream) -> Iterator:
        for name, tensor in stream:
            seen.append(f"add {name}")
            yield name, tensor + 1

    stream = run_pipeline([("a", torch.tensor(3.0)), ("b", torch.tensor(4.0))], [double, add])
    assert seen == []
    assert {name: tensor.item() for name, tensor in stream} == {"a": 7.0, "b": 9.0}
    assert seen == ["double a", "add a", "double b", "add b"]

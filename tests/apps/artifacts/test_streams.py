"""Reading tensors piece by piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.artifacts import streams
from apps.artifacts.store import artifact_path, read_header, save_tensors
from apps.base.errors import ArtifactError


@settings(max_examples=50, deadline=None)
@given(numel=st.integers(0, 5 * streams.PIECE))
def test_ranges_cover_a_tensor_once(numel):
    ranges = list(streams.piece_ranges(numel))
    assert sum(stop - start for start, stop in ranges) == numel
    assert all(0 < stop - start <= streams.PIECE for start, stop in ranges)
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 25])
def test_tensor_read_in_pieces_is_the_tensor(dtype, numel, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PIECE", 8)
    tensor = (torch.randn(numel, generator=torch.Generator().manual_seed(numel)) * 5).to(dtype)
    path = artifact_path(tmp_path, save_tensors(tmp_path, {"before": torch.ones(3), "t": tensor}, "model"))
    read = streams.read_tensor(path, read_header(path)["t"])
    assert read.dtype == dtype
    assert torch.equal(read, tensor)


def test_shape_is_kept(tmp_path):
    tensors = {"scalar": torch.tensor(3.0), "matrix": torch.arange(6.0).reshape(2, 3)}
    path = artifact_path(tmp_path, save_tensors(tmp_path, tensors, "model"))
    for name, spec in read_header(path).items():
        assert torch.equal(streams.read_tensor(path, spec), tensors[name])


def test_reader_uses_one_buffer_again(tmp_path):
    path = artifact_path(tmp_path, save_tensors(tmp_path, {"t": torch.arange(10.0)}, "model"))
    spec, reader = read_header(path)["t"], streams.PieceReader()
    first = reader.read(path, spec, 0, 5)
    assert first.tolist() == [0, 1, 2, 3, 4]
    second = reader.read(path, spec, 5, 10)
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [5, 6, 7, 8, 9]


def test_file_that_became_shorter_or_vanished_is_refused_by_name(tmp_path):
    path = artifact_path(tmp_path, save_tensors(tmp_path, {"t": torch.arange(10.0)}, "model"))
    spec = read_header(path)["t"]
    with open(path, "r+b") as stream:
        stream.truncate(spec.end - 1)
    with pytest.raises(ArtifactError, match="ended early") as caught:
        streams.PieceReader().read(path, spec, 0, 10)
    assert caught.value.file == str(path)
    path.unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        streams.PieceReader().read(path, spec, 0, 10)

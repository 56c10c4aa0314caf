"""Artifacts are ordinary safetensors files named by their content; all other files are refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from apps.artifacts.store import (
    DTYPES,
    Artifact,
    TensorSpec,
    artifact_path,
    layout,
    load_tensors,
    read_header,
    save_tensors,
    sha256_file,
    verify,
    write_artifact,
)
from apps.base.errors import ArtifactError, StorageError

PROJECT = Path(__file__).resolve().parents[3]


def example() -> dict[str, torch.Tensor]:
    """Every type, with a scalar, an empty tensor, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, generator=generator)
    tensors = {f"t.{name}": (values * 10).to(getattr(torch, name)) for name, _ in DTYPES.values()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": values.T}


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_public_library_reads_what_we_write(tmp_path):
    tensors = example()
    artifact = save_tensors(tmp_path, tensors, "model")
    loaded = load_file(artifact_path(tmp_path, artifact))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_we_read_what_the_public_library_writes(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in example().items()}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "theirs.safetensors")
    types = {name: torch_name for name, (torch_name, _) in DTYPES.items()}
    assert {n: (types[s.dtype], s.shape) for n, s in header.items()} == {
        n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()
    }
    content = (tmp_path / "theirs.safetensors").read_bytes()
    for name, spec in header.items():
        assert content[spec.begin : spec.end] == bytes(tensors[name].reshape(-1).view(torch.uint8).numpy())
    assert all(torch.equal(t, tensors[n]) for n, t in load_tensors(tmp_path / "theirs.safetensors").items())


def test_same_content_gives_the_same_file_in_any_order(tmp_path):
    tensors = example()
    one = save_tensors(tmp_path / "one", tensors, "model")
    two = save_tensors(tmp_path / "two", dict(reversed(tensors.items())), "update")
    path = artifact_path(tmp_path / "one", one)
    assert one["sha256"] == two["sha256"]
    assert path.read_bytes() == artifact_path(tmp_path / "two", two).read_bytes()
    assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_file(path)
    assert one["nbytes"] == path.stat().st_size
    assert (one["kind"], two["kind"]) == ("model", "update")


def test_every_tensor_is_aligned_to_its_type(tmp_path):
    artifact = save_tensors(tmp_path, example(), "model")
    for spec in read_header(artifact_path(tmp_path, artifact)).values():
        assert spec.begin % DTYPES[spec.dtype][1] == 0


shapes_strategy = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(shapes=shapes_strategy)
def test_layout_round_trips_and_fills_the_file(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    head, places = layout(shapes)
    content = ((name, [bytes(places[name].nbytes)]) for name in places)
    artifact = write_artifact(folder, shapes, content, "model")
    assert read_header(artifact_path(folder, artifact)) == places
    assert artifact["nbytes"] == len(head) + sum(spec.nbytes for spec in places.values())
    loaded = load_file(artifact_path(folder, artifact))
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {n: s for n, (_, s) in shapes.items()}


def test_empty_artifact(tmp_path):
    artifact = save_tensors(tmp_path, {}, "update")
    assert read_header(verify(tmp_path, artifact)) == {}


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    artifact = save_tensors(tmp_path, {"a": torch.arange(5.0), "b": torch.tensor([True, False])}, "model")
    whole = artifact_path(tmp_path, artifact).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"cut\.safetensors"):
            read_header(cut)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError, match="truncated"):
        read_header(cut)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_lead_to_another_error(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    try:
        read_header(path)
    except ArtifactError as error:
        assert error.file == str(path)


def test_pickle_is_refused_and_never_loaded(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "zip")
    (tmp_path / "plain").write_bytes(pickle.dumps({"a": [1.0] * 100}))
    for name in ("zip", "plain"):
        with pytest.raises(ArtifactError, match="not a safetensors file"):
            load_tensors(tmp_path / name)


HEADERS = {
    "overlap": {"a": entry(), "b": entry(offsets=(4, 12))},
    "hole": {"a": entry(), "b": entry(offsets=(12, 20))},
    "hole at the start": {"a": entry(offsets=(4, 12))},
    "before the start": {"a": entry(offsets=(-8, 0))},
    "backwards": {"a": entry(offsets=(8, 0))},
    "negative size": {"a": entry(shape=(-2,), offsets=(0, -8))},
    "two negative sizes": {"a": entry(shape=(-2, -1))},
    "size and place disagree": {"a": entry(shape=(3,))},
    "unknown type": {"a": entry(dtype="C64")},
    "type is a list": {"a": entry(dtype=["F32"])},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "size is a fraction": {"a": entry(shape=(2.5,))},
    "size is text": {"a": entry(shape="2")},
    "size is true": {"a": entry(shape=(2, True))},
    "offset is text": {"a": entry(offsets=("0", "8"))},
    "three offsets": {"a": entry(offsets=(0, 8, 8))},
    "entry is a list": {"a": [1, 2]},
    "list": [1, 2],
    "number": 3,
    "text": "F32",
    "null": None,
    "infinite": b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}',
    "not a number": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}}',
    "deep": b"[" * 200_000,
    "not utf-8": b"\xff\xfe\xfd{}",
    "no json": b"{",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_bad_header_is_refused(header, tmp_path):
    path = raw_file(tmp_path / "bad.safetensors", header, bytes(20))
    with pytest.raises(ArtifactError) as caught:
        read_header(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 1000])
def test_absurd_header_length_is_refused(length, tmp_path):
    path = tmp_path / "absurd"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        read_header(path)


def test_empty_missing_and_folder_are_refused(tmp_path):
    (tmp_path / "empty").touch()
    for name in ("empty", "missing", "."):
        with pytest.raises(ArtifactError):
            read_header(tmp_path / name)


def test_verify_distinguishes_missing_size_and_content(tmp_path):
    artifact = save_tensors(tmp_path, {"a": torch.zeros(4)}, "model")
    path = artifact_path(tmp_path, artifact)
    assert verify(tmp_path, artifact) == path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        verify(tmp_path, artifact)
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=f"{len(whole) - 1} bytes instead of {len(whole)}"):
        verify(tmp_path, artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        verify(tmp_path, artifact)


def test_specs_are_alike_at_any_position():
    assert TensorSpec("F32", (2, 3), 0, 24).like(TensorSpec("F32", (2, 3), 100, 124))
    assert not TensorSpec("F32", (2, 3)).like(TensorSpec("F32", (3, 2)))
    assert not TensorSpec("F32", (2, 3)).like(TensorSpec("F16", (2, 3)))
    assert TensorSpec("BF16", (2, 3)).nbytes == 12
    assert TensorSpec("BOOL", ()).numel == 1
    assert [TensorSpec(name, ()).floating for name in ("F64", "BF16", "I64", "BOOL")] == [True, True, False, False]


SHAPES = {"a": ("F32", (2,)), "b": ("F32", (1,))}
CONTENTS = {
    "too little of one": [("a", [bytes(4)]), ("b", [bytes(4)])],
    "too much of one": [("a", [bytes(8), bytes(4)]), ("b", [bytes(4)])],
    "wrong order": [("b", [bytes(4)]), ("a", [bytes(8)])],
    "one is missing": [("a", [bytes(8)])],
    "nothing": [],
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_content_that_does_not_fit_leaves_nothing_behind(content, tmp_path):
    with pytest.raises(ArtifactError):
        write_artifact(tmp_path, SHAPES, content, "model")
    assert list(tmp_path.iterdir()) == []


def test_type_without_a_name_in_the_format_names_the_tensor(tmp_path):
    with pytest.raises(ArtifactError, match=r"'z'.*complex64"):
        save_tensors(tmp_path, {"z": torch.zeros(2, dtype=torch.complex64)}, "model")


def test_failing_disk_is_a_storage_error(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free space") as caught:
        save_tensors(tmp_path, {"a": torch.zeros(4)}, "model")
    assert caught.value.file == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import resource, sys, torch
from apps.artifacts.store import save_tensors
from apps.base.errors import StorageError
if sys.argv[2] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    save_tensors(sys.argv[1], {"a": torch.zeros(1_000_000)}, "model")
except StorageError as error:
    sys.stdout.write(str(error))
"""


def write_in_another_process(folder: Path, limit: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(limit)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_file_size_limit_is_a_storage_error(tmp_path):
    assert "File too large" in write_in_another_process(tmp_path, 100_000)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_a_storage_error(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let a small disk be mounted")
    try:
        told = write_in_another_process(tmp_path, 0)
        assert "No space left on device" in told
        assert str(tmp_path) in told
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_name_that_is_not_a_hash_is_never_verified(tmp_path):
    (tmp_path / "store").mkdir()
    outside = save_tensors(tmp_path, {"a": torch.zeros(1)}, "model")
    sneaky = Artifact(sha256=f"../{outside['sha256']}", nbytes=outside["nbytes"], kind="update")
    with pytest.raises(ArtifactError):
        verify(tmp_path / "store", sneaky)

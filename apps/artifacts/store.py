"""Artifacts: immutable safetensors files named by the SHA-256 of their content.

The format is the public one (8 bytes header length, a JSON header, then raw tensors), so any safetensors
library reads the files. They are written and checked here because the library neither streams a file
out nor hashes it while writing, and both are needed for models larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from apps.artifacts.finite import require_finite_piece
from apps.artifacts.header import DTYPES, Header, Shapes, TensorSpec, parse_header, tensor_spec
from apps.base.errors import ArtifactError
from apps.base.files import atomic_file, cannot_read

if TYPE_CHECKING:
    import torch

SHA256 = re.compile("[0-9a-f]{64}")
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library


class Artifact(TypedDict):
    """Reference to an artifact; crosses app boundaries instead of tensors."""

    sha256: str
    nbytes: int
    kind: str


def artifact_path(store: str | Path, artifact: Artifact) -> Path:
    """Return the path of an artifact in a store, whether it exists or not.

    Raises:
        ArtifactError: its name is no SHA-256; it must not lead to another folder.
    """
    if not isinstance(artifact["sha256"], str) or not SHA256.fullmatch(artifact["sha256"]):
        raise ArtifactError(f"{str(artifact['sha256'])[:70]!r} is no name of an artifact: it must be a SHA-256")
    return Path(store) / f"{artifact['sha256']}.safetensors"


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(store: str | Path, artifact: Artifact) -> Path:
    """Return the path of an artifact in a store after checking its size and SHA-256.

    Raises:
        ArtifactError: missing, wrong size, wrong content.
    """
    path = artifact_path(store, artifact)
    if not path.is_file():
        raise ArtifactError("artifact is missing", file=str(path))
    if path.stat().st_size != artifact["nbytes"]:
        raise ArtifactError(
            f"artifact has {path.stat().st_size:,} bytes instead of {artifact['nbytes']:,}", file=str(path)
        )
    if sha256_file(path) != artifact["sha256"]:
        raise ArtifactError("artifact's content does not match its SHA-256", file=str(path))
    return path


def read_header(path: str | Path, limit: int = HEADER_LIMIT) -> Header:
    """Read the names, types, shapes and positions of the tensors in a file, checked strictly.

    Args:
        path: of the file.
        limit: bytes of a longer header are not read.

    Raises:
        ArtifactError: missing, not a safetensors file, truncated, tensors overlap or leave gaps.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise ArtifactError("not a safetensors file", file=str(path))
            if length > limit:
                raise ArtifactError(f"its header has {length:,} bytes, at most {limit:,} are read", file=str(path))
            raw = stream.read(length)
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        header = parse_header(raw, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"not a safetensors file: {error}", file=str(path)) from None
    _check_extent(header, 8 + length, size, path)
    return header


def header_nbytes(path: str | Path) -> int:
    """Return the length of a file's header, as the file says.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise cannot_read(path, error) from error


def _check_extent(header: Header, data_start: int, size: int, path: str | Path) -> None:
    at = data_start
    for spec in sorted(header.values(), key=lambda s: (s.begin, s.end)):
        if spec.begin != at:
            raise ArtifactError("tensors overlap or leave gaps", file=str(path))
        at = spec.end
    if at != size:
        raise ArtifactError(f"file is truncated: {size:,} bytes instead of {at:,}", file=str(path))


def layout(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> tuple[bytes, Header]:
    """Return the header bytes of a file, and the positions of its tensors in the order of the file.

    Widest types first, then by name: every tensor is aligned and the same content gives the same file.

    Args:
        shapes: of all tensors.
        metadata: text for other programs; artifacts have none.
    """
    order = sorted(shapes, key=lambda name: (-DTYPES[shapes[name][0]][1], name))
    entries, at = {}, 0
    for name in order:
        spec = TensorSpec(*shapes[name])
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    everything = {"__metadata__": dict(metadata), **entries} if metadata else entries
    text = json.dumps(everything, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: tensor_spec(e, start) for n, e in entries.items()}


def write_artifact(
    store: str | Path,
    shapes: Shapes,
    content: Iterable[tuple[str, Iterable[memoryview | bytes]]],
    kind: str,
    *,
    finite: bool = False,
) -> Artifact:
    """Stream tensors into a new artifact in one pass that also computes its hash.

    Args:
        store: folder of artifacts.
        shapes: of all tensors.
        content: (name, pieces of raw bytes) in the order of ``layout(shapes)``.
        kind: for people: model, adapter, update.
        finite: refuse values that are not finite; for all that the server makes.

    Raises:
        ArtifactError: the content does not fit the shapes.
        ModelNotFinite: with ``finite``; no file is left.
        StorageError: the store cannot be written.
    """
    head, header = layout(shapes)
    digest = hashlib.sha256(head)
    at = len(head)
    with atomic_file(store, lambda: f"{digest.hexdigest()}.safetensors") as stream:
        stream.write(head)
        for name, pieces in content:
            _expect(at == header[name].begin, f"{name} is written out of order")
            checked = torch_type(header[name]) if finite and header[name].floating else None
            for piece in pieces:
                if checked is not None:
                    require_finite_piece(piece, checked, name)
                stream.write(piece)
                digest.update(piece)
                at += memoryview(piece).nbytes
            _expect(at == header[name].end, f"{name} has the wrong number of bytes")
        _expect(at == max((spec.end for spec in header.values()), default=at), "the content ended early")
    return Artifact(sha256=digest.hexdigest(), nbytes=at, kind=kind)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ArtifactError(what)


def torch_type(spec: TensorSpec) -> torch.dtype:
    """Return the type of a tensor as torch names it."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[spec.dtype][0])
    return found


def save_tensors(
    store: str | Path, tensors: Mapping[str, torch.Tensor], kind: str, *, finite: bool = False
) -> Artifact:
    """Write tensors that are in memory as one artifact.

    Raises:
        ArtifactError: a tensor has a type that files cannot hold.
        ModelNotFinite: with ``finite``: a value is not finite; no file is left.
        StorageError: the store cannot be written.
    """
    shapes = shapes_of(tensors)
    content = ((name, [raw_bytes(tensors[name])]) for name in layout(shapes)[1])
    return write_artifact(store, shapes, content, kind, finite=finite)


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Return the types and shapes of tensors as ``layout`` takes them.

    Raises:
        ArtifactError: a tensor has a type that files cannot hold.
    """
    names = {f"torch.{torch_name}": name for name, (torch_name, _) in DTYPES.items()}
    for name, tensor in tensors.items():
        _expect(str(tensor.dtype) in names, f"tensor {name!r} has the type {tensor.dtype}, which files cannot hold")
    return {name: (names[str(tensor.dtype)], tuple(tensor.shape)) for name, tensor in tensors.items()}


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's content as bytes, without a copy if it is on the CPU and contiguous."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a file into memory; for adapters and tests, not for large models."""
    from safetensors.torch import load_file

    read_header(path)
    return load_file(path)

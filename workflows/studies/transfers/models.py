"""The models of a transfer study: their tensors, from published shapes, and files of exactly their size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from apps.artifacts.store import DTYPES, Artifact, layout, write_artifact
from apps.base.errors import UserMistake
from apps.models.loading import random_network
from data.names import did_you_mean

# the reference paper's range (arXiv 2603.19544, Figure 4: OPT-125m to Llama-2-13b, five models)
DEFAULT = ("opt-125m", "opt-350m", "opt-1.3b", "llama-2-7b", "llama-2-13b")
SOURCES = {  # name -> name on the hub, whose shape is in workflows/planning/memory/model.py
    "opt-125m": "facebook/opt-125m",
    "opt-350m": "facebook/opt-350m",
    "opt-1.3b": "facebook/opt-1.3b",
    "opt-2.7b": "facebook/opt-2.7b",
    "opt-6.7b": "facebook/opt-6.7b",
    "opt-13b": "facebook/opt-13b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
}
PRECISIONS = {torch_name: name for name, (torch_name, _) in DTYPES.items() if name in ("F32", "F16", "BF16", "I8")}
LARGEST = 1 << 26  # elements of one tensor of a model given by its number of parameters
PIECE = 1 << 22  # bytes that are drawn and written at a time
OWN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,39})=([1-9][0-9_]*)")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StudyModel:
    """A model whose files are moved.

    Attributes:
        name: in the table.
        source: its name on the hub; empty for a model given by its number of parameters.
        shapes: of its tensors, as in its file.
    """

    name: str
    source: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(_numel(shape) for shape in self.shapes.values())


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def model_of(text: str) -> StudyModel:
    """Return a model by its name, or by a name and a number of parameters: ``llama-2-7b``, ``mine=40_000_000``.

    Raises:
        UserMistake: another text.
    """
    own = OWN.fullmatch(text)
    if own:
        return StudyModel(own[1], "", own_shapes(int(own[2])))
    if text.lower() in SOURCES:
        return StudyModel(text.lower(), SOURCES[text.lower()], hub_shapes(SOURCES[text.lower()]))
    hint = did_you_mean(text.lower(), SOURCES)
    raise UserMistake(f"--models: unknown model {text!r}{hint}; or write NAME=PARAMETERS")


def own_shapes(parameters: int) -> Shapes:
    """Return the shapes of tensors with this number of parameters in all."""
    sizes = [min(LARGEST, parameters - start) for start in range(0, parameters, LARGEST)]
    return {f"tensor.{number}": (size,) for number, size in enumerate(sizes)}


def hub_shapes(source: str) -> Shapes:
    """Return the tensors of a model from the dated table of published configurations; nothing is downloaded.

    They are made on torch's meta device, where they have shapes and no memory; a tensor that is used twice, as tied
    embeddings are, is in a file once.
    """
    import torch
    from transformers import AutoConfig

    from workflows.planning.memory.model import known_config

    values = known_config(source)
    assert values is not None, f"{source} is not in the table"
    with torch.device("meta"):
        network = random_network(AutoConfig.for_model(**values))
    return {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}


def file_bytes(model: StudyModel, dtype: str) -> int:
    """Return the bytes of the artifact of a model, with its header; ``dtype`` is torch's name."""
    head, places = layout(typed(model, dtype))
    return len(head) + sum(spec.nbytes for spec in places.values())


def typed(model: StudyModel, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of each tensor."""
    return {name: (PRECISIONS[dtype], shape) for name, shape in model.shapes.items()}


def write_model(store: Path, model: StudyModel, dtype: str, show: Callable[[int], None]) -> Artifact:
    """Write an artifact of a model's size, piece by piece: the same bytes for the same model and precision.

    The content is random, so that it cannot be compressed on the way; it is not used for computation.

    Args:
        store: the folder of artifacts.
        model: whose tensors it has.
        dtype: torch's name.
        show: receives the number of bytes after each piece.

    Raises:
        StorageError: the store cannot be written.
    """
    shapes = typed(model, dtype)
    _, places = layout(shapes)
    draw = _random_pieces(model.parameters, show)
    return write_artifact(store, shapes, ((name, draw(spec.nbytes)) for name, spec in places.items()), "study")


def _random_pieces(seed: int, show: Callable[[int], None]) -> Callable[[int], Iterator[memoryview]]:
    import numpy

    generator = numpy.random.SFC64(seed)
    written = 0

    def draw(nbytes: int) -> Iterator[memoryview]:
        nonlocal written
        for start in range(0, nbytes, PIECE):
            size = min(PIECE, nbytes - start)
            yield generator.random_raw(-(-size // 8)).data.cast("B")[:size]
            written += size
            show(written)

    return draw

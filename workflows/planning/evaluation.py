"""Sum of what evaluation needs: arithmetic of one round, memory, and time at its place.

A forward pass costs two operations per parameter and token. Samples count with ``data.max_tokens``, so that time is an
upper bound for the arithmetic; loading and reading come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apps.artifacts.store import read_header
from apps.base.errors import ArtifactError
from apps.models.model import ModelSpec
from apps.models.sources import PACKAGED, TINY, is_converted, model_folder
from apps.ranks.parallel import is_sharded_over_ranks, ranks_of
from data.records import load_records
from data.tasks import EMBEDDED
from workflows.planning.memory.speed import ARITHMETIC, rates_of
from workflows.planning.plan import Plan, evaluation_settings

CORE_FLOPS = 50e9  # of one core of a server's processor in products of float32 matrices: an estimate
WIDTHS = {"float32": 4, "bfloat16": 2}
LIBRARIES_BYTES = 0.7e9  # of a process with torch and transformers


@dataclass(frozen=True)
class EvaluationSum:
    """Arithmetic and memory of evaluation.

    Attributes:
        models: evaluated in a round.
        samples: of the test set; None: unknown before the records are read.
        tokens: of a sample, at most.
        parameters: of the model.
        width: bytes of a parameter.
        flops: operations a second at its place; None: unknown.
        shards: parts into which ranks divide the weights.
    """

    models: int
    samples: int | None
    tokens: int
    parameters: int
    width: int
    flops: float | None
    shards: int = 1

    @property
    def operations(self) -> float | None:
        """Operations of one round."""
        return None if self.samples is None else 2.0 * self.models * self.samples * self.tokens * self.parameters

    @property
    def seconds(self) -> float | None:
        """Seconds of one round."""
        return None if self.operations is None or self.flops is None else self.operations / self.flops

    @property
    def weights_bytes(self) -> int:
        """Bytes of the loaded model."""
        return self.parameters * self.width


def evaluation_sum(plan: Plan) -> EvaluationSum | None:
    """Return the sum for a plan; None if the size of the model is unknown on this machine."""
    campaign, work = plan.campaign, plan.evaluation_work
    parameters = parameters_of(work["model"])
    if parameters is None:
        return None
    return EvaluationSum(
        models=1 + len(plan.sites) if campaign.evaluation.sites else 1,
        samples=_samples(plan),
        tokens=work["data"]["max_tokens"],
        parameters=parameters,
        width=WIDTHS[work["model"]["dtype"]],
        flops=_flops(plan),
        shards=_shards(plan),
    )


def _shards(plan: Plan) -> int:
    parallel = evaluation_settings(plan)["parallel"]
    return ranks_of(parallel) if parallel and is_sharded_over_ranks(parallel) else 1


def _samples(plan: Plan) -> int | None:
    """Return the samples of the test set: counted for the embedded data, else at most, None without a limit."""
    data, split = plan.evaluation_work["data"], plan.evaluation_work["split"]
    if data["source"] == EMBEDDED:
        try:
            return len(load_records(EMBEDDED, split, data["tasks"], data["per_task"]))
        except (ValueError, FileNotFoundError):  # reported by the check of the data
            return None
    return len(data["tasks"]) * data["per_task"] if data["per_task"] else None


def _flops(plan: Plan) -> float | None:
    settings, site = evaluation_settings(plan), plan.evaluation_at.site
    ranks = ranks_of(settings["parallel"]) if settings["parallel"] else 1
    if settings["device"] == "cpu":
        return CORE_FLOPS * settings["threads"] * ranks
    rates = rates_of(site)
    return None if rates is None else ARITHMETIC * rates.flops * ranks


def parameters_of(spec: ModelSpec) -> int | None:
    """Return the number of parameters of a base model: from its files if they are here, else from its configuration."""
    source = spec["source"]
    if source == TINY:
        size = spec["tiny"] or {}
        return 12 * size["layers"] * size["width"] ** 2 + 1000 * size["width"]
    if source in PACKAGED and not is_converted(source):
        return None  # the first task unpacks it
    folder = Path(model_folder(source))
    try:
        headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []
    except ArtifactError:  # reported when they are read
        headers = []
    if headers:
        return sum(tensor.numel for header in headers for tensor in header.values())
    from workflows.planning.memory.model import shape_of  # loads transformers

    shape = shape_of(spec)
    return shape.parameters if shape else None

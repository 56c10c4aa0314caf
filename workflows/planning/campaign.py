"""The schema of a campaign file: every key, its type, its default and its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from apps.aggregate import LINEAR_METHODS
from apps.models.tiny import tiny_heads
from data.names import did_you_mean
from site_configs.library.site import Collection
from workflows.console.units import plural
from workflows.planning.labels import EVALUATOR, SERVER_BLOCK
from workflows.strategies import AnySection, has_rounds, is_plain_mean
from workflows.strategies.fedavg import FedAvgSection, SynchronousSection
from workflows.strategies.scaffold import ScaffoldSection

UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"
AUTO = "auto"
PLACE = re.compile(r"\{\s*([A-Za-z_]\w+|0?)\s*\}")  # what a template of Python or Jinja would fill in


class Section(BaseModel):
    """A part of the campaign file.

    Defaults are validated too: 300 for a float would name another task than 300.0 does when it is read again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Adapter(Section):
    """Settings of LoRA; ``method`` is the server's rule (``apps/artifacts/lora.py``)."""

    method: Literal["fedit", "ffa", "flora", "fedex", "svd"] = "fedit"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 16
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"  # or the last parts of modules' names
    last_layers: PositiveInt | None = None  # adapt only this many layers at the end; None: all


class Tiny(Section):
    """Size of a Llama-style model that is built from scratch."""

    width: PositiveInt = 128
    layers: PositiveInt = 4

    @field_validator("width")
    @classmethod
    def _even_heads(cls, width: int) -> int:
        heads = tiny_heads(width)
        if width % (2 * heads):
            raise ValueError(f"must be a multiple of {2 * heads}: {heads} heads of even size")
        return width


class ModelSection(Section):
    """The base model and its adapter.

    ``source`` is smollm2-135m-instruct (shipped by a package), tiny, a folder, or a name on the hub.
    """

    source: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the weights
    traffic: Literal["float32", "bfloat16"] = "float32"  # of what travels, where all parameters are trained
    adapter: Adapter | None = None
    tiny: Tiny | None = None


class DataSection(Section):
    """The records that are trained on.

    ``source`` is embedded, or the path of a SMolInstruct archive, folder or set of record files.
    """

    source: str = "embedded"
    tasks: list[str] | None = None  # task ids or families; None: all of the source
    per_task: PositiveInt | None = None  # at most this many training samples of a task
    max_tokens: int = Field(default=128, ge=16)
    prompt: str = "Q: {input}\nA:"
    loss_on: Literal["answer", "all"] = "answer"

    @field_validator("prompt")
    @classmethod
    def _one_place(cls, prompt: str) -> str:
        """Check that the question has one place; braces around anything but a name are text of the template."""
        if "{{input}}" in prompt:
            raise ValueError("write {input} with single braces, the place of the question")
        for name in PLACE.findall(prompt):
            if name != "input":
                raise ValueError(f"{{{name}}} is no place, it would be trained on as text; the only one is {{input}}")
        if prompt.count("{input}") != 1:
            raise ValueError("must contain {input}, the place of the question, once")
        return prompt


class TrainingSection(Section):
    """Settings of a site's training in a round."""

    steps: PositiveInt
    batch_size: PositiveInt = 8
    accumulate: PositiveInt = 1
    learning_rate: PositiveFloat
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_factor: float = Field(default=0.0, ge=0, le=1)  # of the learning rate, at the end of a decay
    warmup_steps: NonNegativeInt = 0  # once in a campaign, not in each round
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = 1.0
    proximal_mu: NonNegativeFloat = 0.0
    keep_optimizer: bool = False
    precision: Literal["auto", "no", "bf16"] = "auto"
    checkpoint_s: PositiveFloat = 300  # seconds between two checkpoints of a running training
    on_walltime: Literal["finish", "return"] = "finish"  # finish in the next block, or return the steps done so far


class ParallelSection(Section):
    """Settings of how training is spread over ranks; the memory plan decides what is ``auto``.

    ``micro_batch`` is the number of samples of one rank in one pass.
    """

    sharding: Literal["auto", "none", "ddp", "shard_grad_op", "full_shard"] = "auto"
    offload: bool | Literal["auto"] = "auto"
    checkpoint_activations: bool | Literal["auto"] = "auto"
    micro_batch: PositiveInt | Literal["auto"] = "auto"


class PlaceEntry(BaseModel):
    """A block of its own for the server's work. Keys beyond ``config`` are settings of its machine."""

    model_config = ConfigDict(extra="allow", frozen=True)

    config: str  # a name in site_configs or a FILE.py

    @property
    def settings(self) -> dict[str, Any]:
        """The keys for the machine's own file."""
        return dict(self.model_extra or {})


class PlacedSection(Section):
    """A part of the server's work: at a site of the campaign, in a block of its own, or on the driver's host (None)."""

    site: str | PlaceEntry | None = None

    @field_validator("site", mode="before")
    @classmethod
    def _name_or_machine(cls, site: Any) -> Any:
        if isinstance(site, dict) and not isinstance(site.get("config"), str):
            raise ValueError("a block of its own needs a machine: {config: MACHINE, ...}")
        if site is not None and not isinstance(site, str | dict | PlaceEntry):
            raise ValueError("must be the name of a site, or {config: MACHINE, ...} for a block of its own")
        return site


class ServerSection(PlacedSection):
    """Where the first model, the aggregated ones and the final model are computed."""


class EvaluationSection(PlacedSection):
    """The pooled test set, and where and when models are evaluated on it."""

    split: str = "test"
    per_task: PositiveInt | None = None
    batch_size: PositiveInt = 16
    every: PositiveInt = 1  # rounds
    sites: bool = True  # also score each site's own model
    threads: PositiveInt | Literal["auto"] = "auto"  # of the place: 1 on the driver's host
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"  # of the place: cpu on the driver's host


class ChecksSection(Section):
    """Limits on the L2 norms of updates, and on the loss of the models that they make; None: no such limit."""

    max_update_norm: PositiveFloat | None = None
    clip_to_median: float | None = Field(default=2.0, ge=1)  # times the round's median norm
    refuse_beyond: float | None = Field(default=10.0, gt=1)  # times the largest norm that has counted
    max_loss_increase: NonNegativeFloat | None = None  # of the mean held-out loss, nats per token


class GlobusSection(Section):
    """The driver's own collection for Globus Transfer."""

    collection: str = Field(pattern=UUID)
    folder: Path = Path("/")  # folder of this machine that the collection shows as its "/"

    def as_collection(self) -> Collection:
        """Return it in the form that sites use."""
        return Collection(self.collection, self.folder)


class SiteEntry(BaseModel):
    """A site of the campaign. Keys beyond these are settings of its machine, see ``machine_settings``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    config: str | None = None  # a name in site_configs or a FILE.py; None: the site's own name
    tasks: list[str] | None = None  # task ids or families; None: a share of the families that no site names
    data: str | None = None  # path of the site's records; None: data.source
    model: str | None = None  # path of the base model at the site; None: model.source
    # of the key that signs its answers; None: the key of its first answer
    public_key: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @property
    def settings(self) -> dict[str, Any]:
        """The keys for the site's own file."""
        return dict(self.model_extra or {})


def machine_settings(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of the machine in a site's entry as it stands in a campaign file."""
    return {key: value for key, value in (entry or {}).items() if key not in SiteEntry.model_fields}


class Campaign(Section):
    """One federated run."""

    name: str = Field(pattern=NAME)
    seed: NonNegativeInt = 1
    rounds: PositiveInt
    model: ModelSection
    data: DataSection = DataSection()
    strategy: AnySection = FedAvgSection()
    training: TrainingSection
    parallel: ParallelSection = ParallelSection()
    server: ServerSection = ServerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checks: ChecksSection = ChecksSection()
    globus: GlobusSection | None = None  # needed if Globus Transfer moves files
    sites: dict[str, SiteEntry] = Field(min_length=1)
    retries: NonNegativeInt = 2  # of a task whose worker or block was lost

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.model.source == "tiny" and self.model.tiny is None:
            raise ValueError("model.tiny: needed with 'source: tiny', for example {width: 128, layers: 4}")
        if self.model.source != "tiny" and self.model.tiny is not None:
            raise ValueError("model.tiny: only goes with 'source: tiny'")
        if self.training.keep_optimizer and self.model.adapter and self.model.adapter.method == "flora":
            raise ValueError("training.keep_optimizer: flora begins every round with new adapters, no moments fit")
        return self

    @model_validator(mode="after")
    def _places(self) -> Self:
        for key, site in (("server.site", self.server.site), ("evaluation.site", self.evaluation.site)):
            if isinstance(site, str) and site not in self.sites:
                raise ValueError(f"{key}: the campaign has no site {site!r}{did_you_mean(site, self.sites)}")
        return self

    def config_of(self, label: str) -> str:
        """Return the machine of an executor: a name in site_configs or a FILE.py."""
        own = {SERVER_BLOCK: self.server.site, EVALUATOR: self.evaluation.site}.get(label)
        return own.config if isinstance(own, PlaceEntry) else self.sites[label].config or label

    @property
    def period(self) -> str:
        """Unit of ``rounds``: ``round``, or ``version`` of the model if the strategy has no rounds."""
        return "round" if has_rounds(self.strategy.name) else "version"

    @property
    def extent(self) -> str:
        """Length of the campaign, for people."""
        by = "" if isinstance(self.strategy, FedAvgSection) else f" of {self.strategy.name}"
        return f"{plural(self.rounds, self.period)}{by}"

    @model_validator(mode="after")
    def _strategy_fits(self) -> Self:
        strategy, adapter = self.strategy, self.model.adapter
        if isinstance(strategy, SynchronousSection):
            if problem := strategy.misfit(len(self.sites), adapter.method if adapter else None):
                raise ValueError(problem)
        elif self.checks.max_loss_increase is not None:
            raise ValueError(f"checks.max_loss_increase: needs a strategy with rounds, {strategy.name} has none")
        if isinstance(strategy, ScaffoldSection):
            raise ValueError(
                "strategy.name: scaffold corrects the gradients of plain SGD, and the sites train with AdamW; it runs"
                " in the simulation only (algorithm_study.py). Similar strategies: fednova, fedprox"
            )
        if adapter and adapter.method not in LINEAR_METHODS and not is_plain_mean(strategy):
            raise ValueError(
                f"model.adapter.method: {adapter.method} can only average the updates of one round, {strategy.name}"
                f" also sums earlier models; use {' or '.join(LINEAR_METHODS)}, or the strategy fedavg or fedprox"
            )
        return self

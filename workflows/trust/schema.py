"""What the answers of sites may look like: types, ranges, lengths, and what must agree with the call.

Types are strict, numbers finite, and fields that are not named here are refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apps.artifacts.manifests import HEADER_SPARE
from apps.training.task import task_identity
from workflows.trust.calls import SiteCall

CLOCKS_S = 86_400.0  # by which a site's clock may be ahead
SET_BACK_S = 60.0  # by which a site's clock may be set back while it works
MOMENTS = ("started", "ended", "time")
SHOWN = 80  # characters of a refused value

Count = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[int, Field(ge=1, le=10**12)]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]  # UNIX seconds
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
TaskId = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\z")]
Path = Annotated[str, Field(max_length=4096, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\z")]
Names = Annotated[dict[Name, Name], Field(max_length=200)]
Counts = Annotated[dict[Name, Count], Field(max_length=1000)]
Cuts = Annotated[dict[Name, Counts], Field(max_length=1000)]


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WorkerName(Answer):
    """The process that has answered a call."""

    pid: Positive
    host: Name


class SignedAnswer(Answer):
    """A site's signature; ``workflows/trust/site_keys.py`` verifies it."""

    statement: Annotated[str, Field(max_length=1_000_000)]
    key: Sha256
    signature: Annotated[str, Field(pattern=r"\A[0-9a-f]{128}\z")]


class EnrolAnswer(Answer):
    """Result of ``apps.train.enrol``."""

    shard_sha256: Sha256
    samples: Positive
    per_task: Counts
    cut: Cuts
    libraries: Names
    host: Name
    free_bytes: Annotated[int, Field(ge=0, le=10**24)]
    started: Moment
    ended: Moment
    signed: SignedAnswer


class ArtifactAnswer(Answer):
    """An artifact that a site has made."""

    sha256: Sha256
    nbytes: Positive
    kind: Literal["update", "delta"]


class ManifestAnswer(Answer):
    """Result of ``apps.train.local_train``."""

    task_id: TaskId
    code_version: Name
    site: Name
    round: Count
    base: Sha256
    artifact: ArtifactAnswer
    store: Path
    steps_done: Count
    steps_asked: Count
    samples: Count
    shard_samples: Positive
    shard_cut: Cuts
    tokens: Count
    loss_first: Number | None  # None: the site's policy withholds it
    loss_last: Number | None
    train_s: Seconds
    attempts: Positive
    load_s: Seconds
    verify_s: Seconds
    data_s: Seconds
    save_s: Seconds
    update_s: Seconds
    tokens_per_s: Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
    padding: Share
    optimizer: Literal["fresh", "carried", "lost"]
    started: Moment
    ended: Moment
    reused: bool
    signed: SignedAnswer


class ProgressAnswer(Answer):
    """Progress of a task, as a part of ``SiteStatusAnswer`` or in the site's file."""

    task_id: TaskId
    round: Count
    phase: Literal["loading", "training", "saving"]
    step: Count
    steps: Count
    loss: Number | None
    tokens_per_s: Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
    time: Moment

    @model_validator(mode="after")
    def _has_no_more_steps_than_planned(self) -> ProgressAnswer:
        if self.step > self.steps:
            raise ValueError(f"step {self.step} of {self.steps}")
        return self


class SiteStatusAnswer(Answer):
    """Result of ``apps.site.site_status``."""

    progress: ProgressAnswer | None
    claims: Annotated[list[TaskId], Field(max_length=1000)]
    checkpoint: Path | None
    finished: TaskId | None
    time: Moment


class ExaminationAnswer(Answer):
    """Result of ``apps.site.examine_site``."""

    versions: Names
    storage: Path | None


class BlockStartAnswer(Answer):
    """Result of ``apps.site.block_started``."""

    block: Annotated[str, Field(max_length=32, pattern=r"\A[0-9]*\z")]
    left_s: Number | None
    host: Name
    started: Moment
    ended: Moment


def problem_of(schema: type[Answer], value: Any) -> str | None:
    """Return what of a value does not fit a schema, in one line; None: it fits."""
    try:
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part)[:SHOWN] for part in first["loc"])
        shown = ascii(first["input"])[:SHOWN] if isinstance(first["input"], str | int | float | None) else ""
        message = first["msg"][0].lower() + first["msg"][1:]
        return f"{name or 'it'}: {message}" + (f", got {shown}" if shown else "")
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits cannot even be shown
        return f"it cannot be checked: {type(error).__name__}"
    return _times_problem(value)


def _times_problem(value: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the UNIX times of an answer, or None."""
    future = [name for name in MOMENTS if value.get(name, 0.0) > time.time() + CLOCKS_S]
    if future:
        return f"{', '.join(future)}: in the future"
    if value.get("started", 0.0) - value.get("ended", math.inf) > SET_BACK_S:
        return "started: after it has ended"
    return None


def enrolment_problem(result: Any, call: SiteCall) -> str | None:
    """Return what is wrong with the result of an enrolment, or None."""
    problem = problem_of(EnrolAnswer, result)
    if problem is not None:
        return problem
    data = call.args[1]["data"]
    unknown = sorted(result["per_task"].keys() - set(data["tasks"]))
    if unknown:
        return f"per_task: {unknown[0]!r} is none of the site's tasks"
    if sum(result["per_task"].values()) != result["samples"]:
        return f"samples: {result['samples']} is not the sum of per_task"
    strange = sorted(result["cut"].keys() - result["per_task"].keys())
    if strange or any(cut.keys() - {"question", "answer"} for cut in result["cut"].values()):
        return f"cut: {strange[0]!r} is not among per_task" if strange else "cut: counts of other parts"
    limit = data["per_task"]
    over = [task for task, count in result["per_task"].items() if limit is not None and count > limit]
    if over:
        return f"per_task: {result['per_task'][over[0]]} samples of {over[0]!r}, the campaign takes {limit}"
    return None


def manifest_problem(result: Any, call: SiteCall) -> str | None:
    """Return what is wrong with the manifest of a training, or None: it must answer this request and no other."""
    problem = problem_of(ManifestAnswer, result)
    if problem is not None:
        return problem
    place, work, request, base, shard = call.args
    wanted: Mapping[str, Any] = {
        "task_id": task_identity(place, work, request, base, shard),
        "site": place["site"],
        "round": place["round"],
        "base": base["artifact"]["sha256"],
        "code_version": work["code_version"],
        "steps_asked": request["training"]["steps"],
        "shard_samples": shard["samples"],
        "shard_cut": shard["cut"],
    }
    for name, value in wanted.items():
        if result[name] != value:
            return f"{name}: {ascii(result[name])[:SHOWN]}, this request has {ascii(value)[:SHOWN]}"
    return _measure_problem(result, base["artifact"])


def _measure_problem(manifest: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """Return which of a manifest's numbers is impossible, or None."""
    if manifest["steps_done"] > manifest["steps_asked"]:
        return f"steps_done: {manifest['steps_done']}, {manifest['steps_asked']} were asked"
    largest = base["nbytes"] + HEADER_SPARE
    if manifest["artifact"]["nbytes"] > largest:
        return f"artifact.nbytes: {manifest['artifact']['nbytes']:,}, an update of this model has at most {largest:,}"
    return None


def finished_problem(result: Any, call: SiteCall) -> str | None:
    """Return what is wrong with the answer of ``apps.train.finished_training``, or None."""
    if not isinstance(result, dict) or result.keys() != {"manifest"}:
        return "it has not exactly the field manifest"
    return None if result["manifest"] is None else manifest_problem(result["manifest"], call)


def _fits(schema: type[Answer]) -> Callable[[Any, SiteCall], str | None]:
    return lambda result, _call: problem_of(schema, result)


CHECKS: Mapping[str, Callable[[Any, SiteCall], str | None]] = {
    "apps.train:enrol": enrolment_problem,
    "apps.train:local_train": manifest_problem,
    "apps.train:finished_training": finished_problem,
    "apps.site:site_status": _fits(SiteStatusAnswer),
    "apps.site:examine_site": _fits(ExaminationAnswer),
    "apps.site:block_started": _fits(BlockStartAnswer),
}

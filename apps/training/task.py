"""A training task of a site in plain values: its parts and its identity."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from apps.artifacts.manifests import Manifest, find_manifest
from apps.base.identity import Place, identity
from apps.models.batches import DataSpec
from apps.models.model import ModelSpec
from apps.ranks.parallel import Parallel
from apps.training.spec import TrainingSpec
from apps.trust.orders import NO_ORDER, OrderFacts

BASES = "artifacts"  # folder, in the site's own storage, of the model that training starts from
# settings that are no part of a task's identity, because they do not change the result of a whole training
PARALLEL_EXCLUDED = ("launch", "interface")
TRAINING_EXCLUDED = ("checkpoint_s", "on_walltime", "until")


class SiteWork(TypedDict):
    """Settings of a site that stay the same over a campaign, in plain values."""

    root: str  # the site's own storage for this campaign, which nobody else reads
    out: str  # folder of what leaves the site: updates and their manifests
    shared: str  # folder that others reach through a collection; empty: none
    model: ModelSpec
    data: DataSpec
    seed: int
    threads: int  # of each rank
    parallel: Parallel
    code_version: str
    withheld: NotRequired[list[str]]  # numbers that must not leave the site; set by the site's own policy


class TrainRequest(TypedDict):
    """A strategy's request to a site for one round."""

    training: TrainingSpec
    optimizer_from: str | None  # task whose optimiser state is continued, if the campaign carries it over
    left_over_from: NotRequired[str | None]  # task whose rounding error is added, if changes travel in bfloat16
    attempt: int  # distinguishes a repeated request from the first; no part of the task's identity


@dataclass(frozen=True)
class Task:
    """All that a rank needs for a training.

    Attributes:
        place: the site and the round.
        work: what stays the same for the site.
        request: of this round.
        base: the stage-out result: the model to start from, in the site's store.
        shard: the enrol result.
        order: of the driver; the signed manifest names it.
    """

    place: Place
    work: SiteWork
    request: TrainRequest
    base: dict[str, Any]
    shard: dict[str, Any]
    order: OrderFacts = field(default_factory=lambda: NO_ORDER)

    @property
    def root(self) -> Path:
        """The site's storage."""
        return Path(self.work["root"])

    @property
    def store(self) -> Path:
        """The site's own copy of the model that training starts from."""
        return self.root / BASES

    @property
    def out(self) -> Path:
        """Folder of the update and its manifest."""
        return Path(self.work["out"])

    @property
    def tells_losses(self) -> bool:
        """True if the losses of the training may leave the site."""
        return "losses" not in self.work.get("withheld", ())

    @property
    def id(self) -> str:
        """The task's identity."""
        return task_identity(self.place, self.work, self.request, self.base, self.shard)


def task_identity(
    place: Place, work: SiteWork, request: TrainRequest, base: dict[str, Any], shard: dict[str, Any]
) -> str:
    """Return the identity of a training task.

    It depends on code version, base model, shard, settings, ranks, round and site; not on where files are, nor on the
    number of attempts. For the arguments see ``Task``.
    """
    return identity(
        {
            "code": work["code_version"],
            "base": base["artifact"]["sha256"],
            "shard": shard["shard_sha256"],
            "model": _without(work["model"], "source"),
            "frozen": base.get("frozen", ""),
            "data": _without(work["data"], "source"),
            "training": _without(request["training"], *TRAINING_EXCLUDED),
            "parallel": _without(work["parallel"], *PARALLEL_EXCLUDED),
            "optimizer_from": request["optimizer_from"],
            "left_over_from": request.get("left_over_from"),
            "seed": work["seed"],
            "round": place["round"],
            "site": place["site"],
            "threads": work["threads"],
        }
    )


def _without(values: Any, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def found_manifest(task: Task) -> Manifest | None:
    """Return the manifest that an earlier attempt has left at the site if it answers the request, else None.

    One of fewer steps than requested answers it only if the request accepts that.
    """
    manifest = find_manifest(task.root, task.id, task.out)
    if manifest is None:
        return None
    return manifest if answers(manifest, task.request) else None


def answers(manifest: Mapping[str, Any], request: TrainRequest) -> bool:
    """Return True if a training of the manifest's steps answers a request."""
    spec, whole = request["training"], manifest["steps_done"] == manifest["steps_asked"]
    is_over = spec["until"] is not None and time.time() >= spec["until"]
    return whole or is_over or spec["on_walltime"] == "return"

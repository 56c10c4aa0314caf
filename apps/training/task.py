"""A training task of a site in plain values: what it is, what it is called, and what it is asked to do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from apps.artifacts.manifests import Manifest, find_manifest
from apps.base.identity import Place, identity
from apps.models.batches import DataSpec
from apps.models.model import ModelSpec
from apps.ranks.parallel import Parallel
from apps.training.spec import TrainingSpec

PARALLEL_ELSEWHERE = ("launch", "interface")  # how ranks are started and meet does not change what they compute
TRAINING_ELSEWHERE = ("checkpoint_s", "on_walltime", "until")  # none changes what a whole training comes to


class SiteWork(TypedDict):
    """What stays the same for a site over a campaign, in plain values."""

    root: str  # the site's storage for this campaign
    model: ModelSpec
    data: DataSpec
    seed: int
    threads: int  # of each rank
    parallel: Parallel
    code_version: str


class TrainRequest(TypedDict):
    """What a site is asked to do in one round."""

    training: TrainingSpec
    optimizer_from: str | None  # task whose optimiser state goes on, if the campaign carries it over
    attempt: int  # tells a repeated order from the first; no part of the work's identity


@dataclass(frozen=True)
class Task:
    """All that a rank needs to know.

    Attributes:
        place: the site and the round.
        base: the stage-out result: the model to start from, in the site's store.
        shard: the enrol result.
    """

    place: Place
    work: SiteWork
    order: TrainRequest
    base: dict[str, Any]
    shard: dict[str, Any]

    @property
    def root(self) -> Path:
        return Path(self.work["root"])

    @property
    def id(self) -> str:
        return task_identity(self.place, self.work, self.order, self.base, self.shard)


def task_identity(
    place: Place, work: SiteWork, order: TrainRequest, base: dict[str, Any], shard: dict[str, Any]
) -> str:
    """Names the work: code version, base model, shard, settings, ranks, round and site; not where files lie, and not
    in how many attempts it is done."""
    return identity(
        {
            "code": work["code_version"],
            "base": base["artifact"]["sha256"],
            "shard": shard["shard_sha256"],
            "model": work["model"],
            "data": _without(work["data"], "source"),
            "training": _without(order["training"], *TRAINING_ELSEWHERE),
            "parallel": _without(work["parallel"], *PARALLEL_ELSEWHERE),
            "optimizer_from": order["optimizer_from"],
            "seed": work["seed"],
            "round": place["round"],
            "site": place["site"],
            "threads": work["threads"],
        }
    )


def _without(values: Any, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def found_answer(task: Task) -> Manifest | None:
    """What an earlier attempt has left at the site, if that is what is asked for: a part only if a part will do."""
    manifest = find_manifest(task.root, task.id)
    if manifest is None:
        return None
    spec, whole = task.order["training"], manifest["steps_done"] == manifest["steps_asked"]
    is_over = spec["until"] is not None and time.time() >= spec["until"]
    return manifest if whole or is_over or spec["on_walltime"] == "return" else None

"""Measures the points of a scaling study: real trainings as Parsl apps at the sites, whose updates are thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from apps.artifacts.manifests import Manifest
from apps.base.identity import Place
from apps.server import prepare
from apps.train import enrol, local_train
from apps.training.progress import read_progress
from apps.training.task import TrainRequest
from apps.transfer import stage_out
from workflows.planning.labels import SERVER
from workflows.planning.plan import Plan
from workflows.records.run_directory import RunDirectory
from workflows.runtime.kernel import Kernel, parsl_for, root_cause
from workflows.studies.scaling.points import ScalingPoint, plan_for, training_of
from workflows.studies.scaling.table import ScalingRow, Trained, rates, summary

TICK_S = 0.25
SHORT_STEPS = 2
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured at a point: steps of a repeat, and repeats."""

    steps: int
    repeats: int


@dataclass(frozen=True)
class PointResult:
    """What came of a point: a row, or why there is none."""

    point: ScalingPoint
    row: ScalingRow | None
    failure: str = ""


def measure_wave(
    plan: Plan, run: RunDirectory, wave: Sequence[ScalingPoint], effort: Effort, tell: Tell
) -> Iterator[PointResult]:
    """Measure points at the same time; each answer comes as soon as its point is done.

    Args:
        plan: the campaign's.
        run: the study's directory; trainings that its journal knows are not repeated.
        wave: at most one point of a site.
        effort: how much is measured.
        tell: shown to the user while it runs.

    Raises:
        CrossfedError: Parsl cannot go on.
    """
    here = plan_for(plan, wave)
    with parsl_for(here, run) as kernel:
        pending = {point.key: (point, submit_point(kernel, here, point, effort)) for point in wave}
        while pending:
            kernel.check_health()
            for key, (point, trainings) in list(pending.items()):
                if all(training.done() for training in trainings):
                    del pending[key]
                    yield outcome(point, trainings, here.server_work["code_version"])
            if pending:
                tell("; ".join(standing(point, trainings) for point, trainings in pending.values()))
                time.sleep(TICK_S)


def submit_point(kernel: Kernel, plan: Plan, point: ScalingPoint, effort: Effort) -> list[Future[Any]]:
    """One short training and the repeats, one after the other, all from the same model.

    A site has one worker, so they do not run beside each other.
    """
    name, root = point.site.name, str(point.site.storage_root)
    work, remote = plan.site_work[name], f"{root}/artifacts"
    start = Place(site=name, round=0)
    shard = kernel.submit(enrol, start, work, on=name)
    model = kernel.submit(prepare, Place(site=SERVER, round=0), plan.server_work, on=SERVER)
    base = kernel.submit(stage_out, start, model, plan.server_work["store"], remote, on=SERVER)
    trainings: list[Future[Any]] = []
    for number in range(effort.repeats + 1):
        steps = SHORT_STEPS + (effort.steps if number else 0)
        order = TrainRequest(training=training_of(plan.campaign, point, steps), optimizer_from=None, attempt=1)
        place = Place(site=name, round=number)
        trainings.append(kernel.submit(local_train, place, work, order, base, shard, on=name))
    return trainings


def standing(point: ScalingPoint, trainings: Sequence[Future[Any]]) -> str:
    """How far a point is, for people."""
    done = sum(training.done() for training in trainings)
    progress = read_progress(point.site.storage_root)
    now = f", step {progress['step']} of {progress['steps']}" if progress and progress["phase"] == "training" else ""
    return f"{point.words}: training {done + 1} of {len(trainings)}{now}"


def outcome(point: ScalingPoint, trainings: Sequence[Future[Any]], code: str) -> PointResult:
    """The row of a point whose trainings have all ended."""
    for training in trainings:
        error = root_cause(training)
        if error is not None:
            return PointResult(point, None, str(error) or type(error).__name__)
    short, *repeats = [trained(training.result()) for training in trainings]
    return PointResult(point, row_of(point, short, repeats, code))


def trained(manifest: Manifest) -> Trained:
    return Trained(manifest["samples"], manifest["tokens"], manifest["train_s"])


def row_of(point: ScalingPoint, short: Trained, repeats: Sequence[Trained], code: str) -> ScalingRow:
    name, nodes, devices = point.key
    found: dict[str, Any] = summary(rates(short, repeats))
    need = point.memory.need
    return ScalingRow(
        site=name,
        nodes=nodes,
        devices=devices,
        sharding=point.strategy,
        micro_batch=point.memory.choice.micro_batch,
        planned_bytes=round(need.device) if need else 0,
        code=code,
        **found,
    )

"""Measure the points of a scaling study: real training as Parsl apps at the sites, whose updates are discarded."""

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
Show = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """Amount of measurement at a point: steps of a repeat, and repeats."""

    steps: int
    repeats: int


@dataclass(frozen=True)
class PointResult:
    """Result of a point: a row, or the reason why there is none."""

    point: ScalingPoint
    row: ScalingRow | None
    failure: str = ""


def measure_wave(
    plan: Plan, run: RunDirectory, wave: Sequence[ScalingPoint], effort: Effort, show: Show
) -> Iterator[PointResult]:
    """Measure points at the same time; yield each result as soon as its point is done.

    Args:
        plan: of the campaign.
        run: the study's directory; trainings in its journal are not repeated.
        wave: at most one point of a site.
        effort: amount of measurement.
        show: receives the progress for the user.

    Raises:
        CrossfedError: Parsl cannot continue.
    """
    here = plan_for(plan, wave)
    with parsl_for(here, run) as kernel:
        pending = {point.key: (point, submit_point(kernel, here, point, effort)) for point in wave}
        while pending:
            kernel.check_health()
            for key, (point, trainings) in list(pending.items()):
                if all(training.done() for training in trainings):
                    del pending[key]
                    yield result_of(point, trainings, here.server_work["code_version"])
            if pending:
                show("; ".join(progress_text(point, trainings) for point, trainings in pending.values()))
                time.sleep(TICK_S)


def submit_point(kernel: Kernel, plan: Plan, point: ScalingPoint, effort: Effort) -> list[Future[Any]]:
    """Submit one short training and the repeats, one after the other, all from the same model.

    A site has one worker, so they do not run beside each other.
    """
    name, remote = point.site.name, str(point.site.incoming)
    work = plan.site_work[name]
    start = Place(site=name, round=0)
    shard = kernel.submit(enrol, start, work, on=name)
    model = kernel.submit(prepare, Place(site=SERVER, round=0), plan.server_work, on=SERVER)
    base = kernel.submit(stage_out, start, model, plan.server_work["store"], remote, on=SERVER)
    trainings: list[Future[Any]] = []
    for number in range(effort.repeats + 1):
        steps = SHORT_STEPS + (effort.steps if number else 0)
        request = TrainRequest(training=training_of(plan.campaign, point, steps), optimizer_from=None, attempt=1)
        place = Place(site=name, round=number)
        trainings.append(kernel.submit(local_train, place, work, request, base, shard, on=name))
    return trainings


def progress_text(point: ScalingPoint, trainings: Sequence[Future[Any]]) -> str:
    """Return the progress of a point for the user."""
    done = sum(training.done() for training in trainings)
    progress = read_progress(point.site.storage_root)
    now = f", step {progress['step']} of {progress['steps']}" if progress and progress["phase"] == "training" else ""
    return f"{point.name}: training {done + 1} of {len(trainings)}{now}"


def result_of(point: ScalingPoint, trainings: Sequence[Future[Any]], code: str) -> PointResult:
    """Return the result of a point whose trainings have all ended."""
    for training in trainings:
        error = root_cause(training)
        if error is not None:
            return PointResult(point, None, str(error) or type(error).__name__)
    short, *repeats = [trained(training.result()) for training in trainings]
    return PointResult(point, row_of(point, short, repeats, code))


def trained(manifest: Manifest) -> Trained:
    """Return the amounts of one training from its manifest."""
    return Trained(manifest["samples"], manifest["tokens"], manifest["train_s"])


def row_of(point: ScalingPoint, short: Trained, repeats: Sequence[Trained], code: str) -> ScalingRow:
    """Return the row of a point from its short training and the repeats."""
    name, nodes, devices = point.key
    found: dict[str, Any] = summary(rates(short, repeats))
    need = point.memory.need
    return ScalingRow(
        site=name,
        nodes=nodes,
        devices=devices,
        sharding=point.sharding,
        micro_batch=point.memory.choice.micro_batch,
        planned_bytes=round(need.device) if need else 0,
        code=code,
        **found,
    )

"""Convert strategy actions to arguments of apps and to journal records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict, cast

from apps.artifacts.manifests import Manifest
from apps.artifacts.robust import RobustSpec
from apps.artifacts.server_optimizer import ServerRuleSpec
from apps.training.spec import TrainingSpec
from apps.training.task import TrainRequest
from workflows.dataflow.norm_bounds import Clip
from workflows.dataflow.replay import Clock
from workflows.planning.plan import Plan
from workflows.records.changes import schedule_rounds
from workflows.strategies.base import Aggregate, Train, UpdateArrived

SHORTEST_S = 1e-6  # of a training or a wait; less is no measure


def train_request(
    plan: Plan, action: Train, asked: Sequence[int], attempt: int, keep: str | None, until: float | None
) -> TrainRequest:
    """Return what a site is asked to do, as ``local_train`` takes it.

    Args:
        plan: the checked campaign.
        action: what the strategy wants; what it leaves open comes from the campaign.
        asked: the numbers of rounds that users asked for, for the learning rate's schedule.
        attempt: number of this request for the same work.
        keep: last task of the site, whose optimizer state and rounding error continue, if the campaign carries them.
        until: UNIX time of ``action.until_s``.
    """
    training = plan.campaign.training
    total = schedule_rounds(asked, action.version + 1) * training.steps
    spec: dict[str, Any] = {
        **training.model_dump(),
        "steps": training.steps if action.steps is None else action.steps,
        "learning_rate": training.learning_rate * action.rate_factor,
        "proximal_mu": training.proximal_mu if action.proximal_mu is None else action.proximal_mu,
        "start_step": action.version * training.steps,
        "total_steps": 0 if training.schedule == "constant" else total,
        "device": plan.sites[action.site].device,
        "until": until,
    }
    return TrainRequest(
        training=cast(TrainingSpec, spec),
        optimizer_from=keep if training.keep_optimizer else None,
        left_over_from=keep if plan.rules.get("changes") else None,
        attempt=attempt,
    )


def robust_spec(action: Aggregate) -> RobustSpec | None:
    """Return the robust rule as ``aggregate`` takes it, or None."""
    return cast(RobustSpec, asdict(action.robust)) if action.robust else None


def server_rule_spec(action: Aggregate) -> ServerRuleSpec | None:
    """Return the optimizer at the server as ``aggregate`` takes it, or None."""
    return cast(ServerRuleSpec, asdict(action.server)) if action.server else None


def update_event(clock: Clock, action: Train, arrival: Mapping[str, Any], shard: Mapping[str, Any]) -> UpdateArrived:
    """Return the event of an update that has passed the checks.

    Strategies plan by the times that a site tells, so none may be longer than the campaign is old; one that is too
    short to be a measure is 0.

    Args:
        clock: of the campaign.
        action: the request.
        arrival: the stage-in result.
        shard: the site's enrol result.
    """
    manifest: Manifest = arrival["manifest"]
    longest_s = max(clock.age_s(), 0.0)
    return UpdateArrived(
        clock.now(),
        action.site,
        action.task,
        manifest["task_id"],
        manifest["steps_done"],
        manifest["samples"],
        _measured_s(manifest["train_s"], longest_s),
        _measured_s(arrival["wait_s"], longest_s),
        shard["samples"],
        arrival["update_norm"],
    )


def _measured_s(told_s: float, longest_s: float) -> float:
    """Return what a site says that it took, as far as it can be a measure."""
    return min(told_s, longest_s) if told_s >= SHORTEST_S else 0.0


class CountedUpdate(TypedDict):
    """An update that is part of a model, for the journal."""

    site: str
    order: int  # number of the request at its site
    weight: float
    staleness: int  # versions made since the model it started from
    new: bool  # it counts for the first time
    norm: NotRequired[float]  # L2 norm of its change
    clip: NotRequired[float]  # factor on its change


def counted_updates(
    action: Aggregate, actions: Mapping[int, Train], counted: set[int], clips: Mapping[int, Clip]
) -> dict[int, CountedUpdate]:
    """Return the journal's record of each update in a model, by task.

    Args:
        action: the aggregation.
        actions: training requests by task.
        counted: tasks that are part of an earlier model.
        clips: how the updates count whose norms are known.
    """
    updates: dict[int, CountedUpdate] = {}
    for task, weight in action.parts:
        updates[task] = CountedUpdate(
            site=actions[task].site,
            order=actions[task].round,
            weight=weight,
            staleness=action.base - actions[task].version,
            new=task not in counted,
        )
        if task in clips:
            updates[task] |= {"norm": clips[task].norm, "clip": clips[task].factor}
    return updates


def site_weights(updates: Mapping[int, CountedUpdate]) -> dict[str, float]:
    """Return the sum of the weights of each site's updates."""
    weights: dict[str, float] = {}
    for update in updates.values():
        weights[update["site"]] = weights.get(update["site"], 0.0) + update["weight"]
    return weights

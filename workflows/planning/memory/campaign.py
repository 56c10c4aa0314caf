"""Memory plans of a campaign's sites, and their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from site_configs.library.site import Site
from workflows.console.units import bytes_text, plural
from workflows.planning.memory.estimate import BFLOAT16, FLOAT32, Need, TrainingSetup
from workflows.planning.memory.measure import NotMeasured
from workflows.planning.memory.model import ModelShape, shape_of
from workflows.planning.memory.plan import MemoryPlan, plan_site
from workflows.planning.memory.round_time import describe_round, round_time
from workflows.planning.memory.speed import estimate, rates_of

if TYPE_CHECKING:
    from apps.models.model import ModelSpec
    from workflows.planning.campaign import Campaign

Lines = list[tuple[str, str]]


def plan_memory(campaign: Campaign, spec: ModelSpec, sites: Mapping[str, Site]) -> dict[str, MemoryPlan]:
    """Return the memory plan of each of these sites.

    Args:
        campaign: with its ``model.dtype`` decided.
        spec: its model.
        sites: by name.

    Raises:
        UserMistake: no way of training fits one of the sites.
    """
    if not sites:
        return {}
    setup, batch = training_setup(campaign), campaign.training.batch_size
    try:
        shape = shape_of(spec)
        return {name: plan_site(site, shape, setup, batch, campaign.parallel) for name, site in sites.items()}
    except NotMeasured as reason:
        why = f"memory is not planned for {reason}"
        return {name: plan_site(site, None, setup, batch, campaign.parallel, why) for name, site in sites.items()}


def training_setup(campaign: Campaign) -> TrainingSetup:
    """Return the part of the training settings that memory depends on."""
    weights = BFLOAT16 if campaign.model.dtype == "bfloat16" else FLOAT32
    mixed = weights == FLOAT32 and campaign.training.precision == "bf16"
    return TrainingSetup(weight_bytes=weights, mixed=mixed, length=campaign.data.max_tokens)


def describe_site(site: Site, plan: MemoryPlan, shape: ModelShape | None, setup: TrainingSetup) -> Lines:
    """Return the lines of a site's plan: how training is spread, memory needed and available, estimated speed."""
    lines = [(f"memory {site.name}", spread_text(plan)), *_need_lines(plan)]
    rate = samples_per_s(site, plan, shape, setup)
    if rate:
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        lines.append(("", f"about {speed} samples/s of {setup.length} tokens (an estimate)"))
    return lines


def samples_per_s(site: Site, plan: MemoryPlan, shape: ModelShape | None, setup: TrainingSetup) -> float | None:
    """Return the estimated speed of a site in training; None if its machine is not in the table."""
    rates = rates_of(site)
    if not (plan.need and shape and rates):
        return None
    return estimate(shape, setup, plan.machine, plan.choice, rates).samples_per_s * plan.occupancy


def describe_rounds(
    site: Site, plan: MemoryPlan, shape: ModelShape | None, setup: TrainingSetup, campaign: Campaign
) -> list[str]:
    """Return the lines about how a block's time divides in a round; none if the site's speed is unknown."""
    rate, training = samples_per_s(site, plan, shape, setup), campaign.training
    if not (rate and shape) or campaign.period != "round":
        return []
    samples = training.steps * training.accumulate * training.batch_size
    sent = BFLOAT16 if campaign.model.traffic == "bfloat16" else FLOAT32
    time = round_time(shape, setup, samples, rate, plan.machine.nodes, training.checkpoint_s, sent)
    return describe_round(time, training.steps)


def idle_text(plan: MemoryPlan) -> str:
    """Return a hint if a batch has too few samples for a site's ranks, else ''."""
    if not plan.idle_ranks:
        return ""
    fewer = "nodes" if plan.machine.nodes > 1 else "ranks"
    verb = "has" if plan.idle_ranks == 1 else "have"
    return (
        f"{plan.machine.ranks} ranks share a batch of {plan.batch}, {plan.idle_ranks} {verb} nothing to do:"
        f" use fewer {fewer} or a larger training.batch_size"
    )


def spread_text(plan: MemoryPlan) -> str:
    """Return how training is spread over nodes and ranks."""
    machine, choice = plan.machine, plan.choice
    extras = [
        text
        for used, text in ((choice.checkpoint, "activations computed again"), (choice.offload, "optimiser on the host"))
        if used
    ]
    where = f"{plural(machine.nodes, 'node')} x {plural(machine.ranks_per_node, 'rank')}"
    return ", ".join([where, choice.sharding, *extras, f"micro-batch {choice.micro_batch}"])


def _need_lines(plan: MemoryPlan) -> Lines:
    need, machine = plan.need, plan.machine
    if need is None:
        return [("", plan.note)]
    share = need.device / machine.device_bytes
    lines = [
        (
            "",
            f"per rank: {terms_text(need)} = {bytes_text(need.device)}"
            f" of {bytes_text(machine.device_bytes)} ({share:.0%})",
        )
    ]
    if machine.accelerator:
        room = f" of {bytes_text(machine.host_bytes)}" if machine.host_bytes else ""
        what = "loading and offloading" if plan.choice.offload else "loading"
        lines.append(("", f"per host: {bytes_text(need.host)}{room} for {what}"))
    return lines


def terms_text(need: Need) -> str:
    """Return the terms of a need, without zeros."""
    terms: Sequence[tuple[str, float]] = [(f.name, getattr(need, f.name)) for f in fields(need) if f.name != "host"]
    return " + ".join(f"{name} {bytes_text(value)}" for name, value in terms if value)

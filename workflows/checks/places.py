"""Checks of the places where the server's work and evaluation run: device, memory and time, without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator

from workflows.checks.host_memory import memory_limit
from workflows.console.units import bytes_text, plural, seconds_text
from workflows.planning.evaluation import LIBRARIES_BYTES, EvaluationSum, evaluation_sum
from workflows.planning.labels import key_of
from workflows.planning.places import ServerPlace
from workflows.planning.plan import Plan, evaluation_settings, is_simple

LONGEST_S = 6 * 3600.0  # of one round's evaluation on the driver's host
WORTH_TELLING_S = 600.0
ELSEWHERE = "evaluation.site: a site with the route batch, or a block of its own"


def place_problems(plan: Plan) -> list[str]:
    """Return a line for each place that lacks the device, the memory or the time for its work."""
    found = evaluation_sum(plan)
    return [
        *_device_problems(plan),
        *(_memory_problems(plan, found) if found else ()),
        *(_time_problems(plan.evaluation_at, plan, found) if found else ()),
    ]


def place_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield key and text of the places that the user chose, and of an evaluation that takes long."""
    for key, place in (("server", plan.server_at), ("evaluation", plan.evaluation_at)):
        if place.label not in ("server", "evaluator") or place.site.own_block:
            yield key, place.where
    found = evaluation_sum(plan)
    if found and found.operations and (found.seconds or 0) > WORTH_TELLING_S:
        yield "", sum_text(found, plan)


# -- the device -----------------------------------------------------------------------------------------------------


def _device_problems(plan: Plan) -> Iterator[str]:
    """Yield the devices that a place does not have; those of other machines are as their files say."""
    settings, place = evaluation_settings(plan), plan.evaluation_at
    local = {key_of(label): site for label, site in plan.machines.items() if site.route == "local"}
    wanted: dict[str, str] = {key: site.device for key, site in local.items()}
    if place.here:
        wanted["evaluation.device"] = settings["device"]
        wanted.pop("evaluation.site", None)
    elif settings["device"] not in ("cpu", place.site.device):
        yield f"evaluation.device: {settings['device']}, but {place} has {place.site.device}. Leave it out"
    for key, device in wanted.items():
        if device != "cpu" and not has_device(device):
            remedy = f"Use cpu, or {ELSEWHERE}" if key.startswith("evaluation") else "Use device: cpu"
            yield f"{key}: {device}, and torch finds none on this machine ({os.uname().nodename}). {remedy}"


def has_device(device: str) -> bool:
    """Return True if torch finds a device of this kind on this machine."""
    import torch

    return bool(getattr(torch, device).is_available())


# -- memory ---------------------------------------------------------------------------------------------------------


def _memory_problems(plan: Plan, found: EvaluationSum) -> Iterator[str]:
    terms = here_terms(plan, found)
    limit, needed = memory_limit(), sum(nbytes for _, nbytes in terms)
    if terms and needed > limit.nbytes:
        text = " + ".join(f"{name} {bytes_text(nbytes)}" for name, nbytes in terms)
        remedy = ELSEWHERE if plan.evaluation_at.here else "fewer sites on this machine, or a smaller model"
        yield (
            f"memory: the workers on this machine need {text} = {bytes_text(needed)}, and it lets them have"
            f" {bytes_text(limit.nbytes)} ({limit.source}). Use {remedy}"
        )
    if not plan.evaluation_at.here:
        yield from _memory_there(plan, found)


def here_terms(plan: Plan, found: EvaluationSum) -> list[tuple[str, float]]:
    """Return what the workers on this machine keep in memory, by worker."""
    adapter, terms = plan.campaign.model.adapter, list[tuple[str, float]]()
    if plan.evaluation_at.here and evaluation_settings(plan)["device"] == "cpu":
        terms.append(("evaluation", LIBRARIES_BYTES + found.weights_bytes))
    for name, site in plan.sites.items():
        if site.route == "local" and is_simple(site):  # others have a memory plan of their own
            copies = 1 if adapter else 4  # weights; where all are trained, gradients and two moments
            terms.append((name, LIBRARIES_BYTES + copies * found.weights_bytes))
    if plan.server_at.here and adapter and adapter.method in ("flora", "fedex"):
        terms.append(("final model", LIBRARIES_BYTES + found.weights_bytes))  # what is merged is not streamed
    return terms


def _memory_there(plan: Plan, found: EvaluationSum) -> Iterator[str]:
    node, place = plan.evaluation_at.site.node, plan.evaluation_at
    on_device = evaluation_settings(plan)["device"] != "cpu"
    room = 0 if node is None else node.device_memory_bytes if on_device else node.memory_bytes
    if room and found.weights_bytes / found.shards > room:
        what = "a device" if on_device else "a node"
        over = f" over {plural(found.shards, 'rank')}" if found.shards > 1 else ""
        yield (
            f"{place}: the model's weights are {_weights_text(found)}{over}, and {what} there has {bytes_text(room)}."
            " Use more ranks (nodes, ranks_per_node), or model.dtype: bfloat16"
        )


def _weights_text(found: EvaluationSum) -> str:
    return f"{found.parameters / 1e9:.3g} G parameters x {found.width} bytes = {bytes_text(found.weights_bytes)}"


# -- time -----------------------------------------------------------------------------------------------------------


def _time_problems(place: ServerPlace, plan: Plan, found: EvaluationSum) -> Iterator[str]:
    if found.seconds is None:
        return
    block = place.site.own_block
    if place.here and found.seconds > LONGEST_S:
        yield (
            f"{place}: {sum_text(found, plan)}, more than {seconds_text(LONGEST_S)}."
            f" Use {ELSEWHERE}; or fewer samples (evaluation.per_task), evaluation.sites: false, a larger"
            " evaluation.every, more evaluation.threads"
        )
    elif block and found.seconds / found.models > block.walltime_s:
        walltime = seconds_text(block.walltime_s)
        yield f"{place}: {sum_text(found, plan)}, and one model has to fit into its block of {walltime}"


def sum_text(found: EvaluationSum, plan: Plan) -> str:
    """Return the sum of one round's evaluation."""
    settings = evaluation_settings(plan)
    assert found.operations is not None and found.flops is not None and found.seconds is not None
    rate = f"{found.flops / 1e9:,.0f} Gflop/s" if found.flops < 1e12 else f"{found.flops / 1e12:,.0f} Tflop/s"
    device = plural(settings["threads"], "thread") if settings["device"] == "cpu" else settings["device"]
    return (
        f"a round evaluates {plural(found.models, 'model')} x {found.samples:,} samples x up to {found.tokens} tokens"
        f" x 2 x {found.parameters / 1e9:.3g} G parameters = {found.operations:.2g} operations,"
        f" up to {seconds_text(found.seconds)} at {rate} ({device})"
    )

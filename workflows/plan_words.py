"""A plan in words."""

from __future__ import annotations

from typing import Any

from site_configs.library.site import Site
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.plan import Plan
from workflows.strategies.fedecho import FedEchoSection


def plan_in_words(plan: Plan) -> list[tuple[str, Any]]:
    """The plan in words, for ``--check``."""
    campaign = plan.campaign
    training, adapter = campaign.training, campaign.model.adapter
    each = "a round" if campaign.period == "round" else "an order"
    length = plural(campaign.rounds, campaign.period)
    how = f"LoRA {adapter.method}, rank {adapter.rank}" if adapter else "all parameters"
    samples = plural(training.batch_size * training.accumulate, "sample")
    lines: list[tuple[str, Any]] = [
        ("campaign", f"{campaign.name}, seed {campaign.seed}, {length} of {campaign.strategy.name}"),
        ("model", f"{campaign.model.source} ({campaign.model.dtype}), {how}"),
        ("training", f"{plural(training.steps, 'step')} of {samples} {each},"
                     f" learning rate {training.learning_rate:g} ({training.schedule})"),
        ("data", f"{campaign.data.source}, {plural(len(plan.evaluation_work['data']['tasks']), 'task')}"),
    ]  # fmt: skip
    lines += [
        (f"site {name}", f"{_reached(site)}; {plural(len(plan.tasks[name]), 'task')}: {', '.join(plan.tasks[name])}")
        for name, site in plan.sites.items()
    ]
    return [*lines, *(("switched off", what) for what in switched_off(campaign))]


def _reached(site: Site) -> str:
    return f"{site.machine}, through endpoint {site.endpoint.training}" if site.endpoint else site.machine


def switched_off(campaign: Campaign) -> list[str]:
    """What of the strategy does not hold on machines, in words."""
    strategy, words = campaign.strategy, list[str]()
    if not isinstance(strategy, FedEchoSection):
        return words
    if strategy.early:
        words.append(
            "strategy.early is off: on machines a site has one block at a time; the next is asked for when it has ended"
        )
    if strategy.gather and not strategy.late_binding:
        words.append("strategy.gather is off: without late_binding nobody tells whose block runs and could be awaited")
    return words

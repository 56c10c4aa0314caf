"""Text of ``--check``: what a plan would run, and hints about its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from site_configs.library.queues import HOUR, format_walltime
from site_configs.library.resolve import takes
from site_configs.library.site import Block, Site
from workflows.checks.here import missing_here
from workflows.checks.places import place_lines
from workflows.checks.records import count_lines
from workflows.checks.space import space_text
from workflows.console.units import plural, seconds_text
from workflows.planning.campaign import Campaign
from workflows.planning.labels import shown_name
from workflows.planning.memory.campaign import idle_text, samples_per_s, training_setup
from workflows.planning.memory.model import shape_of
from workflows.planning.number_types import types_text
from workflows.planning.plan import Plan
from workflows.strategies.fedavg import SynchronousSection
from workflows.strategies.fedecho import FedEchoSection

WIDTH = 20
LARGE_RATE = 0.1
SHORTER = (("4h", 4 * HOUR), ("2h", 2 * HOUR), ("1h", HOUR))  # walltimes that are worth a hint


def describe(plan: Plan, run_dir: Path, remarks: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    """Yield the lines that describe a plan.

    Args:
        plan: the checked campaign.
        run_dir: where its files go.
        remarks: on the models, as pairs of key and text.
    """
    for key, text in (*plan_items(plan), *remarks, *count_lines(plan)):
        yield _line(key, text)
    for name in plan.sites:
        yield from _block_lines(plan, name)
    for key, text in place_lines(plan):
        yield _line(key, text) if key else f"{'':{WIDTH}s} {text}"
    for label in plan.server_blocks:
        yield _line(f"block of {shown_name(label)}", block_text(plan.machines[label].block))
    if hint := _quorum_hint(plan):
        yield _line("quorum", hint)
    if space := space_text(plan, run_dir):
        yield _line("disk space", space)
    yield _line("run directory", str(run_dir))
    for problem in missing_here(plan):
        yield _line("not on this machine", problem)


def _block_lines(plan: Plan, name: str) -> Iterator[str]:
    """Yield the lines about a site's batch job."""
    block = plan.sites[name].block
    if block:
        yield _line(f"block of {name}", block_text(block))
        if hint := _walltime_hint(plan, name, block):
            yield _line(f"walltime of {name}", hint)
    if name in plan.memory and (idle := idle_text(plan.memory[name])):
        yield _line(f"training of {name}", idle)


def _line(key: str, text: str) -> str:
    return f"{key + ':':{WIDTH}s} {text}"


def block_text(block: Block | None) -> str:
    """Return the size, length, queue and use of a block, with the queue's rule."""
    assert block is not None
    queue, nodes = block.queue, plural(block.nodes, "node")
    account = f", account {block.account}" if block.account else ""
    account += f", {' '.join(block.options)}" if block.options else ""
    kept = "kept over rounds" if block.reuse == "pilot" else "given back after each round"
    rule = f" (rule of {queue.as_of}, {queue.source})"
    note = f"; {queue.note}" if queue.on_request and queue.note else ""
    return f"{nodes} for {format_walltime(block.walltime_s)} in queue {queue.name}{account}, {kept}{rule}{note}"


def _quorum_hint(plan: Plan) -> str:
    """Return a hint if a quorum has no deadline: a round then still waits for queued jobs. Else ''."""
    section = plan.campaign.strategy
    if not (isinstance(section, SynchronousSection) and section.quorum and section.deadline_s is None):
        return ""
    queued = ", ".join(name for name, site in plan.sites.items() if site.block)
    waits = f"a round still waits for {queued} while they queue; to end it without them: "
    return f"{waits}--set strategy.deadline_s=SECONDS" if queued else ""


def _walltime_hint(plan: Plan, name: str, block: Block) -> str:
    """Return a hint if the user chose no walltime: a short campaign then waits in the queue as long as a long job."""
    entry = plan.campaign.sites[name]
    if entry.settings.get("walltime") is not None or not takes(entry.config or name, "walltime"):
        return ""
    shorter = next((text for text, shorter_s in SHORTER if 2 * shorter_s <= block.walltime_s), None)
    advice = f"; a shorter job often starts sooner: --set sites.{name}.walltime={shorter}" if shorter else ""
    estimate = _training_time(plan, name, block)
    asked = f"none is set, so that {format_walltime(block.walltime_s)} is asked for"
    return f"{asked}{advice}{estimate}" if advice or estimate else ""


def _training_time(plan: Plan, name: str, block: Block) -> str:
    """Return how long the training in a block should take; '' if there is no estimate."""
    memory, training = plan.memory.get(name), plan.campaign.training
    if memory is None or plan.campaign.period != "round":
        return ""
    shape, setup = shape_of(plan.site_work[name]["model"]), training_setup(plan.campaign)
    rate = samples_per_s(plan.sites[name], memory, shape, setup)
    rounds, what = (plan.campaign.rounds, "all rounds") if block.reuse == "pilot" else (1, "a round")
    if not rate:
        return ""
    seconds = rounds * training.steps * training.accumulate * training.batch_size / rate
    estimate = f"{seconds_text(seconds)} or more" if seconds >= 60 else "minutes"  # the estimate is too short
    return f" (training alone, {what}: {estimate}, an estimate)"


def plan_items(plan: Plan) -> list[tuple[str, str]]:
    """Return a plan as pairs of key and text."""
    campaign = plan.campaign
    training, adapter = campaign.training, campaign.model.adapter
    each = "a round" if campaign.period == "round" else "a request"
    length = plural(campaign.rounds, campaign.period)
    how = f"LoRA {adapter.method}, rank {adapter.rank}" if adapter else "all parameters"
    samples = plural(training.batch_size * training.accumulate, "sample")
    steps = f"{plural(training.steps, 'step')} of {samples} {each}"
    tasks = plural(len(plan.evaluation_work["data"]["tasks"]), "task")
    return [
        ("campaign", f"{campaign.name}, seed {campaign.seed}, {length} of {campaign.strategy.name}"),
        ("model", f"{campaign.model.source} ({types_text(campaign)}), {how}"),
        ("training", f"{steps}, learning rate {training.learning_rate:g} ({training.schedule})"),
        ("data", f"{campaign.data.source}, {tasks}"),
        *((f"site {name}", _site_text(site, plan.tasks[name])) for name, site in plan.sites.items()),
        *(("learning rate", text) for text in unusual_rate(campaign)),
        *(("switched off", text) for text in switched_off(campaign)),
        *(("robust rule", text) for text in robust_warning(plan)),
    ]


def _site_text(site: Site, tasks: tuple[str, ...]) -> str:
    route = f", through endpoint {site.endpoint.training}" if site.endpoint else ""
    return f"{site.machine}{route}; {plural(len(tasks), 'task')}: {', '.join(tasks)}"


def unusual_rate(campaign: Campaign) -> list[str]:
    """Return a remark on a learning rate with which AdamW destroys a model: a step moves each weight by about it."""
    rate = campaign.training.learning_rate
    text = f"{rate:g} moves each weight by about as much in a step of AdamW; 1e-6 to 1e-2 are usual"
    return [text] if rate > LARGE_RATE else []


def robust_warning(plan: Plan) -> list[str]:
    """Return a warning if a robust rule is chosen: it takes what one site alone knows for an attack."""
    section = plan.campaign.strategy
    if not (isinstance(section, SynchronousSection) and section.robust):
        return []
    sites = Counter(task for tasks in plan.tasks.values() for task in tasks)
    alone = [task for task, count in sites.items() if count == 1]
    text = f"{section.rule} keeps what most sites agree on, and loses what only one of them knows"
    return [f"{text}: here {len(alone)} of {plural(len(sites), 'task')}, such as {alone[0]}" if alone else text]


def switched_off(campaign: Campaign) -> list[str]:
    """Return a line for each setting of the strategy that has no effect on real machines."""
    strategy, lines = campaign.strategy, list[str]()
    if not isinstance(strategy, FedEchoSection):
        return lines
    if strategy.early:
        lines.append(
            "strategy.early is off: on machines a site has one block at a time; the next is asked for when it has ended"
        )
    if strategy.gather and not strategy.late_binding:
        lines.append("strategy.gather is off: without late_binding it is unknown which blocks run and are worth a wait")
    return lines

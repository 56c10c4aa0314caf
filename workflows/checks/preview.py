"""What would run, in words: the plan, each site's batch script, and what the sites themselves say about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from site_configs.library.queues import format_walltime
from site_configs.library.resolve import takes
from site_configs.library.site import Block, Site
from workflows.checks.here import missing_here
from workflows.console.units import plural
from workflows.planning.campaign import Campaign
from workflows.planning.memory.campaign import describe_site, idle_text, job_of, samples_per_s
from workflows.planning.memory.model import shape_of
from workflows.planning.plan import Plan
from workflows.records.batch_jobs import duration_text
from workflows.runtime.executors import job_prefix, launch_command
from workflows.runtime.worker_start import server_command, server_start, worker_init
from workflows.strategies.fedavg import SynchronousSection
from workflows.strategies.fedecho import FedEchoSection

WIDTH = 20


def describe(plan: Plan, run_dir: Path) -> Iterator[str]:
    """The plan, line by line."""
    for key, value in plan_in_words(plan):
        yield f"{key + ':':{WIDTH}s} {value}"
    for name, site in plan.sites.items():
        if site.block:
            yield f"{'block of ' + name + ':':{WIDTH}s} {block_in_words(site.block)}"
            yield from _walltime_hint(plan, name, site.block)
        if name in plan.memory and (idle := idle_text(plan.memory[name])):
            yield f"{'training of ' + name + ':':{WIDTH}s} {idle}"
    yield from _quorum_hint(plan)
    yield f"{'run directory:':{WIDTH}s} {run_dir}"
    for what in missing_here(plan):
        yield f"{'not on this machine:':{WIDTH}s} {what}"


def block_in_words(block: Block) -> str:
    queue, nodes = block.queue, plural(block.nodes, "node")
    account = f", account {block.account}" if block.account else ""
    kept = "kept over rounds" if block.reuse == "pilot" else "given back after each round"
    rule = f" (rule of {queue.as_of}, {queue.source})"
    return f"{nodes} for {format_walltime(block.walltime_s)} in queue {queue.name}{account}, {kept}{rule}"


def _quorum_hint(plan: Plan) -> Iterator[str]:
    """A quorum is thought to spare the others a long queue; alone it does not."""
    section = plan.campaign.strategy
    if isinstance(section, SynchronousSection) and section.quorum and section.deadline_s is None:
        queued = [name for name, site in plan.sites.items() if site.block]
        if queued:
            yield (
                f"{'quorum:':{WIDTH}s} a round still waits for {', '.join(queued)} while they queue; to end it without"
                " them: --set strategy.deadline_s=SECONDS"
            )


def _walltime_hint(plan: Plan, name: str, block: Block) -> Iterator[str]:
    """What to know where nobody has chosen the walltime: a short campaign waits as long as a long job does."""
    entry = plan.campaign.sites[name]
    if entry.settings.get("walltime") is not None or not takes(entry.config or name, "walltime"):
        return
    yield (
        f"{'walltime of ' + name + ':':{WIDTH}s} none is set, so that {format_walltime(block.walltime_s)} is asked for;"
        f" a shorter job often starts sooner: --set sites.{name}.walltime=4h{_training_time(plan, name, block)}"
    )


def _training_time(plan: Plan, name: str, block: Block) -> str:
    """How long the training in a block should take, in words; empty where that cannot be told beforehand."""
    memory, training = plan.memory.get(name), plan.campaign.training
    if memory is None or plan.campaign.period != "round":
        return ""
    shape, job = shape_of(plan.site_work[name]["model"]), job_of(plan.campaign)
    rate = samples_per_s(plan.sites[name], memory, shape, job)
    rounds, what = (plan.campaign.rounds, "all rounds") if block.reuse == "pilot" else (1, "a round")
    if not rate:
        return ""
    seconds = rounds * training.steps * training.accumulate * training.batch_size / rate
    estimate = f"{duration_text(seconds)} or more" if seconds >= 60 else "minutes"  # it comes out too short
    return f" (training alone, {what}: {estimate}, an estimate)"


def dry_run(plan: Plan, run_dir: Path) -> Iterator[str]:
    """Per site: the very script that would be submitted, the workers' command, and how training is started."""
    for name, site in plan.sites.items():
        yield f"\n# {'=' * 20} {name}: {site.machine}"
        if site.route == "globus":
            yield from endpoint_in_words(site)
        elif site.block:
            provider, command = submission(site, run_dir)
            yield f"# submitted to {site.block.scheduler}; ADDRESS and PORT are filled in when the campaign starts"
            yield provider.render(command).rstrip()
        else:
            yield f"# started on this machine\n{server_command(server_start(site))}"
        for line in training_in_words(plan, name):
            yield f"# {line}"


def submission(site: Site, run_dir: Path) -> tuple[Any, str]:
    """The provider as Parsl would have it, and the command that its jobs run."""
    provider: Any = site.provider(worker_init(site))
    provider.job_prefix = job_prefix("RUN")
    provider.script_dir = str(run_dir / "parsl" / "000" / "submit_scripts")
    return provider, launch_command(site, run_dir)


def endpoint_in_words(site: Site) -> Iterator[str]:
    """What a site's endpoint is sent with each task, and the batch script that it would make of it: not seen there."""
    from workflows.checks.endpoint_script import endpoint_script
    from workflows.globus.setup.template import user_endpoint_config

    assert site.endpoint is not None
    sent = ", ".join(f"{key}={value}" for key, value in user_endpoint_config(site).items())
    yield f"# its endpoint {site.endpoint.training} is sent with each task: {sent or 'nothing'}"
    what = "a block's script is" if site.block else "its workers start with"
    yield f"# if it uses the template that setup_site.py writes, {what}"
    yield endpoint_script(site)


def training_in_words(plan: Plan, name: str) -> Iterator[str]:
    """How a site's training is spread, and what it needs of the memory."""
    from apps.ranks.launchers import launch_command as ranks_command

    work = plan.site_work[name]
    if work["parallel"]["nodes"] * work["parallel"]["ranks_per_node"] > 1:
        program = ["python", "-m", "apps.training.trainer", "JOB"]
        yield f"training: {' '.join(ranks_command(work['parallel'], program))}"
    else:
        yield "training: in the worker itself, one rank"
    if name in plan.memory:
        shape, job = shape_of(work["model"]), job_of(plan.campaign)
        for key, text in describe_site(plan.sites[name], plan.memory[name], shape, job):
            yield f"{key:{WIDTH}s} {text}"


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
        (
            "training",
            f"{plural(training.steps, 'step')} of {samples} {each},"
            f" learning rate {training.learning_rate:g} ({training.schedule})",
        ),
        ("data", f"{campaign.data.source}, {plural(len(plan.evaluation_work['data']['tasks']), 'task')}"),
    ]
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

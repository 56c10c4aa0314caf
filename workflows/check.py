"""What would run, in words: the plan, each site's batch script, and what the sites themselves say about it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apps.errors import REASON_LENGTH
from apps.versions import library_versions
from site_configs.base import Block, Site
from site_configs.queues import format_walltime
from site_configs.schedulers import scheduler_for
from workflows.executors import job_prefix, launch_command, worker_init
from workflows.memory.campaign import describe_site, job_of
from workflows.memory.model import shape_of
from workflows.preflight import Plan, address_problem, missing_here, plan_in_words

VERSIONS = (
    "import json, platform; from apps.versions import code_version, library_versions; "
    "print(json.dumps({'python': platform.python_version(), 'crossfed': code_version(), **library_versions()}))"
)
SETUP_S = 300  # modules and imports from a cold file system take their time
WIDTH = 20


def describe(plan: Plan, run_dir: Path) -> Iterator[str]:
    """The plan, line by line."""
    for key, value in plan_in_words(plan):
        yield f"{key + ':':{WIDTH}s} {value}"
    for name, site in plan.sites.items():
        if site.block:
            yield f"{'block of ' + name + ':':{WIDTH}s} {block_in_words(site.block)}"
    yield f"{'run directory:':{WIDTH}s} {run_dir}"
    for what in missing_here(plan):
        yield f"{'not on this machine:':{WIDTH}s} {what}"


def block_in_words(block: Block) -> str:
    queue, nodes = block.queue, f"{block.nodes} node" + "s" * (block.nodes != 1)
    account = f", account {block.account}" if block.account else ""
    kept = "kept over rounds" if block.reuse == "pilot" else "given back after each round"
    rule = f" (rule of {queue.as_of}, {queue.source})"
    return f"{nodes} for {format_walltime(block.walltime_s)} in queue {queue.name}{account}, {kept}{rule}"


def dry_run(plan: Plan, run_dir: Path) -> Iterator[str]:
    """Per site: the very script that would be submitted, the workers' command, and how training is started."""
    for name, site in plan.sites.items():
        command = launch_command(site, run_dir)
        yield f"\n# {'=' * 20} {name}: {site.machine}"
        if site.block:
            provider: Any = site.provider(worker_init(site))
            provider.job_prefix = job_prefix("RUN")
            provider.script_dir = str(run_dir / "parsl" / "000" / "submit_scripts")
            yield f"# submitted to {site.block.scheduler}; ADDRESS and PORT are filled in when the campaign starts"
            yield provider.render(command).rstrip()
        else:
            yield f"# started on this machine\n{worker_init(site)}\n{command}"
        for line in training_in_words(plan, name):
            yield f"# {line}"


def training_in_words(plan: Plan, name: str) -> Iterator[str]:
    """How a site's training is spread, and what it needs of the memory."""
    from apps.ranks import launch_command as ranks_command

    work = plan.site_work[name]
    if work["parallel"]["nodes"] * work["parallel"]["ranks_per_node"] > 1:
        program = ["python", "-m", "apps.trainer", "JOB"]
        yield f"training: {' '.join(ranks_command(work['parallel'], program))}"
    else:
        yield "training: in the worker itself, one rank"
    if name in plan.memory:
        shape, job = shape_of(work["model"]), job_of(plan.campaign)
        for key, text in describe_site(plan.sites[name], plan.memory[name], shape, job):
            yield f"{key:{WIDTH}s} {text}"


def check_live(plan: Plan, say: Callable[[str], None]) -> bool:
    """Ask the sites themselves; one line per question. True if nothing speaks against a start."""
    fine = True
    for name, site in plan.sites.items():
        for question, problem in site_answers(site):
            fine = fine and problem is None
            say(f"ok       {name}: {question}" if problem is None else f"PROBLEM  {name}: {question}: {problem}")
    return fine


def site_answers(site: Site) -> Iterator[tuple[str, str | None]]:
    """Questions about a site, and what is wrong, or None."""
    if site.block:
        yield from _scheduler_answers(site.block)
    yield f"storage {site.storage_root} can be written", storage_problem(site.storage_root)
    yield "Python, packages and code in its jobs are those of the driver", environment_problem(site)
    if site.block:
        yield "its compute nodes can reach this host", address_problem(site)


def _scheduler_answers(block: Block) -> Iterator[tuple[str, str | None]]:
    scheduler, queue = scheduler_for(block.scheduler, block.command_environment), block.queue
    wanted = queue.name if queue.submit_to is None else queue.submit_to
    if wanted:  # else the scheduler chooses, and tells nobody which
        yield f"queue {wanted} takes jobs", scheduler.queue_problem(wanted)
    if block.account:
        yield f"account {block.account} is valid", scheduler.account_problem(block.account)
    mine = scheduler.mine(wanted) if wanted else scheduler.find("")
    if mine is None:
        yield "my jobs", "the scheduler does not answer"
        return
    limit = queue.queued_per_user
    full = limit is not None and len(mine) >= limit
    problem = f"{queue.name} takes {limit} jobs of a user ({queue.source}, {queue.as_of})" if full else None
    yield f"my jobs in {wanted or 'all queues'}: {len(mine)}", problem


def storage_problem(root: Path) -> str | None:
    """Why a folder cannot be written, or None. It is made if it is not there."""
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text("crossfed")
        probe.unlink()
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    return None


def environment_problem(site: Site) -> str | None:
    """What differs between the driver's environment and the one that the site's jobs set up, or None."""
    import platform

    from apps.versions import code_version

    script = f"{worker_init(site)}\npython -c {shlex.quote(VERSIONS)}"
    try:
        ended = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=SETUP_S, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"its set-up takes more than {SETUP_S} s"
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        return (ended.stderr.strip().splitlines() or ["its set-up ends without a word"])[-1]
    try:
        theirs = dict(json.loads(lines[-1]))
    except (ValueError, TypeError):
        return f"its python is none: it says {lines[-1][:REASON_LENGTH]!r}"
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    differ = [f"{key} {theirs.get(key)} instead of {value}" for key, value in ours.items() if theirs.get(key) != value]
    return ", ".join(differ) or None

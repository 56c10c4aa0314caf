"""What would run, in words: the plan, each site's batch script, and what the sites themselves say about it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from apps.base.errors import REASON_LENGTH
from apps.base.versions import library_versions
from apps.site import storage_problem
from site_configs.library.queues import format_walltime
from site_configs.library.resolve import takes
from site_configs.library.schedulers import scheduler_for
from site_configs.library.site import Block, Site
from workflows.console.units import plural
from workflows.plan_words import plan_in_words
from workflows.planning.memory.campaign import describe_site, idle_text, job_of, samples_per_s
from workflows.planning.memory.model import shape_of
from workflows.planning.plan import Plan, address_problem, missing_here
from workflows.records.batch_jobs import duration_text
from workflows.runtime.executors import job_prefix, launch_command, worker_init
from workflows.strategies.fedavg import SynchronousSection

VERSIONS = (
    "import json, platform; from apps.base.versions import code_version, library_versions; "
    "print(json.dumps({'python': platform.python_version(), 'crossfed': code_version(), **library_versions()}))"
)
POOL, NO_POOL = "process_worker_pool.py", 97  # what a job runs; an exit code of our own
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"
SETUP_S = 300  # modules and imports from a cold file system take their time
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
            provider, command = _submission(site, run_dir)
            yield f"# submitted to {site.block.scheduler}; ADDRESS and PORT are filled in when the campaign starts"
            yield provider.render(command).rstrip()
        else:
            yield f"# started on this machine\n{worker_init(site)}\n{launch_command(site, run_dir)}"
        for line in training_in_words(plan, name):
            yield f"# {line}"


def _submission(site: Site, run_dir: Path) -> tuple[Any, str]:
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


def check_live(plan: Plan, say: Callable[[str], None]) -> bool:
    """Ask the sites themselves; one line per question. True if nothing speaks against a start."""
    fine = True
    for name, site in plan.sites.items():
        by_globus = "globus" in (site.route, site.carrier)
        answers = globus_questions(plan, site) if by_globus else site_answers(site, _run_dir(plan))
        for question, problem in answers:
            fine = fine and problem is None
            say(f"ok       {name}: {question}" if problem is None else f"PROBLEM  {name}: {question}: {problem}")
    return fine


def globus_questions(plan: Plan, site: Site) -> Iterator[tuple[str, str | None]]:
    """The same of a site that Globus reaches; where only its files go that way, its scheduler is asked from here."""
    from workflows.checks.examine import examine_site
    from workflows.checks.globus import globus_answers
    from workflows.globus.identity import globus_app

    app, server = globus_app(), plan.campaign.globus.as_collection() if plan.campaign.globus else None
    yield from globus_answers(site, server, work=_folder_here(plan), ask=partial(examine_site, app), app=app)
    if site.own_block:
        yield from _scheduler_answers(site.own_block)
        yield from _submission_answer(site, _run_dir(plan))


def _run_dir(plan: Plan) -> Path:
    return Path(plan.server_work["store"]).parent


def _folder_here(plan: Plan) -> Path | None:
    """The nearest folder above the run directory that is there: the driver's collection shows it."""
    store = Path(plan.server_work["store"])
    return next((folder for folder in store.parents if folder.is_dir()), None)


def site_answers(site: Site, run_dir: Path) -> Iterator[tuple[str, str | None]]:
    """Questions about a site, and what is wrong, or None."""
    if site.own_block:
        yield from _scheduler_answers(site.own_block)
        yield from _submission_answer(site, run_dir)
    yield f"storage {site.storage_root} can be written", storage_problem(site.storage_root)
    problem, said = environment_answer(site)
    words = f" (its set-up says: {said})" if said else ""
    yield f"Python, packages and code in its jobs are those of the driver{words}", problem
    if site.own_block:
        yield "there is an address that its compute nodes can call back", address_problem(site)


def _scheduler_answers(block: Block) -> Iterator[tuple[str, str | None]]:
    scheduler, queue = scheduler_for(block.scheduler, block.command_environment), block.queue
    wanted = queue.name if queue.submit_to is None else queue.submit_to
    if wanted:  # else the scheduler chooses, and tells nobody which
        yield f"queue {wanted} takes jobs", scheduler.queue_problem(wanted)
    if block.account and block.scheduler == "slurm":  # PBS tells nobody who may charge what
        yield f"account {block.account} is valid", scheduler.account_problem(block.account)
    mine = scheduler.mine(wanted) if wanted else scheduler.find("")
    if mine is None:
        yield "my jobs", "the scheduler does not answer"
        return
    limit = queue.queued_per_user
    full = limit is not None and len(mine) >= limit
    problem = (
        f"{queue.name} takes {plural(limit or 0, 'job')} of a user ({queue.source}, {queue.as_of})" if full else None
    )
    yield f"my jobs in {wanted or 'all queues'}: {len(mine)}", problem


def _submission_answer(site: Site, run_dir: Path) -> Iterator[tuple[str, str | None]]:
    """Whether Slurm would take the job, and when it would start; PBS has no such question."""
    from site_configs.library.providers import SlurmBlocks
    from site_configs.library.trial import try_out

    provider, command = _submission(site, run_dir)
    if isinstance(provider, SlurmBlocks):
        verdict = try_out(provider, command)
        yield f"Slurm would take its job{', ' * bool(verdict.promise)}{verdict.promise}", verdict.problem


def environment_answer(site: Site) -> tuple[str | None, str]:
    """What differs between the driver's environment and the one that the site's jobs set up, or None; and the last
    line that the set-up has to say, for the modules that are not there without its ending for that."""
    if site.python_env and not (site.python_env / "bin" / "python").exists():
        return f"python_env: there is no {site.python_env / 'bin' / 'python'}", ""
    script = "\n".join(
        [worker_init(site), f"command -v {POOL} > /dev/null || exit {NO_POOL}", f"python -c {shlex.quote(VERSIONS)}"]
    )
    try:
        ended = subprocess.run(
            ["bash", "-lc", script], capture_output=True, text=True, timeout=SETUP_S, check=False, cwd="/",
            env=job_environment(site),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its set-up takes more than {SETUP_S} s", ""
    said = (ended.stderr.strip().splitlines() or [""])[-1][:REASON_LENGTH]
    if ended.returncode == NO_POOL:
        return f"no {POOL} on PATH: this environment has no Parsl", said
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        return said or "its set-up ends without a word", ""
    return versions_problem(lines[-1]), said


def job_environment(site: Site) -> dict[str, str]:
    """The variables that a job begins with: Slurm hands on those of the submission, PBS gives a few of its own."""
    if site.block and site.block.scheduler == "pbs":
        return {
            **{k: os.environ[k] for k in ("HOME", "USER", "LOGNAME", "SHELL") if k in os.environ},
            "PATH": PLAIN_PATH,
        }
    return dict(os.environ)


def _counting(key: str, version: object) -> str:
    """The part of a version that has to be the same: a site's torch may be built for other devices (2.13.0+rocm7)."""
    plain = str(version).partition("+")[0]
    return ".".join(plain.split(".")[:2]) if key == "python" else plain


def versions_problem(told: str) -> str | None:
    """What of a site's versions differs from the driver's, or None."""
    import platform

    from apps.base.versions import code_version

    try:
        theirs = dict(json.loads(told))
    except (ValueError, TypeError):
        return f"its python is none: it says {told[:REASON_LENGTH]!r}"
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    differ = [
        f"{key} {theirs.get(key)} instead of {value}"
        for key, value in ours.items()
        if _counting(key, theirs.get(key)) != _counting(key, value)
    ]
    return ", ".join(differ) or None

"""Questions that --check --live asks the sites."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from apps.base.errors import REASON_LENGTH
from apps.base.versions import versions_problem
from apps.site import storage_problem
from site_configs.library.schedulers import scheduler_for
from site_configs.library.site import Block, Site
from workflows.checks.here import address_problem
from workflows.checks.preview import submission
from workflows.console.units import plural
from workflows.planning.plan import Plan
from workflows.runtime.worker_start import worker_init

VERSIONS = (
    "import json, platform; from apps.base.versions import code_version, library_versions; "
    "print(json.dumps({'python': platform.python_version(), 'crossfed': code_version(), **library_versions()}))"
)


POOL, NO_POOL = "process_worker_pool.py", 97  # what a job runs; an exit code of our own


PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"


SETUP_S = 300  # modules and imports from a cold file system take their time


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
    from workflows.checks.globus import check_globus_site
    from workflows.globus.identity import globus_app

    app, server = globus_app(), plan.campaign.globus.as_collection() if plan.campaign.globus else None
    yield from check_globus_site(site, server, work=_folder_here(plan), ask=partial(examine_site, app), app=app)
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

    provider, command = submission(site, run_dir)
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
            ["bash", "-lc", script],
            capture_output=True,
            text=True,
            timeout=SETUP_S,
            check=False,
            cwd="/",
            env=job_environment(site),
        )
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

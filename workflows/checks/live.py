"""Checks of ``--check --live``: queries to the sites' schedulers, storage and environments."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from apps.base.errors import REASON_LENGTH
from apps.base.versions import Comparison, compare_versions
from apps.site import storage_problem
from site_configs.library.schedulers import scheduler_for
from site_configs.library.schedulers.refusals import classify
from site_configs.library.site import Block, Site
from workflows.checks.batch_scripts import submission
from workflows.checks.here import address_problem, command_problem
from workflows.console.units import plural
from workflows.planning.labels import shown_name
from workflows.planning.plan import Plan
from workflows.runtime.worker_start import worker_init

VERSIONS = (
    "import json, platform; from apps.base.versions import code_version, library_versions; "
    "print(json.dumps({'python': platform.python_version(), 'crossfed': code_version(), **library_versions()}))"
)
POOL, NO_POOL = "process_worker_pool.py", 97  # the program that a job runs; an exit code of our own
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"
SETUP_S = 300  # loading modules and packages from a cold file system is slow

Finding = tuple[str, str | None]  # what was checked, and the problem or None


def check_live(plan: Plan, say: Callable[[str], None]) -> bool:
    """Query the sites, say one line for each check, and return True if there is no problem."""
    fine = True
    own = {shown_name(label): plan.machines[label] for label in plan.server_blocks}
    for name, site in {**plan.sites, **own}.items():
        by_globus = "globus" in (site.route, site.carrier)
        for checked, problem in _globus_findings(plan, site) if by_globus else _findings(site, _run_dir(plan)):
            fine = fine and problem is None
            say(f"ok       {name}: {checked}" if problem is None else f"PROBLEM  {name}: {checked}: {problem}")
    return fine


def _globus_findings(plan: Plan, site: Site) -> Iterator[Finding]:
    """Check a site that uses Globus; if only its files go that way, its scheduler is queried from here."""
    from workflows.checks.examine import examine_site
    from workflows.checks.globus import check_globus_site
    from workflows.globus.identity import globus_app

    app, server = globus_app(), plan.campaign.globus.as_collection() if plan.campaign.globus else None
    ask = partial(examine_site, app, campaign=_run_dir(plan).name)
    yield from check_globus_site(site, server, work=_folder_here(plan), ask=ask, app=app)
    yield from _queue_findings(site, _run_dir(plan))


def _run_dir(plan: Plan) -> Path:
    return Path(plan.server_work["store"]).parent


def _folder_here(plan: Plan) -> Path | None:
    """Return the nearest existing folder above the run directory, which the driver's collection shows."""
    store = Path(plan.server_work["store"])
    return next((folder for folder in store.parents if folder.is_dir()), None)


def _findings(site: Site, run_dir: Path) -> Iterator[Finding]:
    """Check a site that is reached from here."""
    yield from _queue_findings(site, run_dir)
    yield f"storage {site.storage_root} can be written", storage_problem(site.storage_root)
    found, output = check_environment(site)
    quoted = f" (its set-up prints: {output})" if output else ""
    yield f"Python, packages and code in its jobs fit those of the driver{quoted}{found.ending}", found.problem
    if site.own_block:
        yield "its compute nodes can connect to an address of this host", address_problem(site)


def _queue_findings(site: Site, run_dir: Path) -> Iterator[Finding]:
    """Check what the scheduler of a site says, if its blocks are submitted from here."""
    if not site.own_block:
        return
    missing = command_problem(site)
    if missing:
        yield "the scheduler's commands are here", missing
        return
    yield from _scheduler_findings(site.own_block)
    yield from _submission_finding(site, run_dir)


def _scheduler_findings(block: Block) -> Iterator[Finding]:
    scheduler, queue = scheduler_for(block.scheduler, block.command_environment), block.queue
    wanted = queue.name if queue.submit_to is None else queue.submit_to
    if wanted:  # else the scheduler chooses, and does not report which
        yield f"queue {wanted} takes jobs", scheduler.queue_problem(wanted, *queue.also)
    if block.account and block.scheduler == "slurm":  # PBS does not report who may use an account
        yield f"account {block.account} is valid", scheduler.account_problem(block.account)
    mine = scheduler.mine(wanted, *queue.also) if wanted else scheduler.find("")
    if mine is None:
        yield "my jobs", "the scheduler does not answer"
        return
    limit = queue.queued_per_user
    full = limit is not None and len(mine) >= limit
    problem = (
        f"{queue.name} takes {plural(limit or 0, 'job')} of a user ({queue.source}, {queue.as_of})" if full else None
    )
    yield f"my jobs in {wanted or 'all queues'}: {len(mine)}", problem


def _submission_finding(site: Site, run_dir: Path) -> Iterator[Finding]:
    """Check that Slurm would take the job, and when it would start; PBS has no such query."""
    from site_configs.library.providers import SlurmBlocks
    from site_configs.library.trial import try_out

    provider, command = submission(site, run_dir)
    if isinstance(provider, SlurmBlocks):
        verdict = try_out(provider, command)
        meaning = classify(verdict.problem or "").meaning
        problem = f"{verdict.problem} ({meaning})" if verdict.problem and meaning else verdict.problem
        yield f"Slurm would take its job{', ' * bool(verdict.promise)}{verdict.promise}", problem


def check_environment(site: Site) -> tuple[Comparison, str]:
    """Compare the environment that a site's jobs set up with the driver's.

    Returns:
        The comparison; and the last line that the set-up writes to stderr, such as a missing module that does
        not end it.
    """
    if site.python_env and not (site.python_env / "bin" / "python").exists():
        return Comparison(f"python_env: there is no {site.python_env / 'bin' / 'python'}"), ""
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
        return Comparison(f"its set-up takes more than {SETUP_S} s"), ""
    output = (ended.stderr.strip().splitlines() or [""])[-1][:REASON_LENGTH]
    if ended.returncode == NO_POOL:
        return Comparison(f"no {POOL} on PATH: this environment has no Parsl"), output
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        return Comparison(output or "its set-up ends without any output"), ""
    return compare_versions(lines[-1], by_parsl=site.route == "batch"), output


def job_environment(site: Site) -> dict[str, str]:
    """Return the variables that a job starts with: Slurm passes on those of the submission, PBS sets a few."""
    if site.block and site.block.scheduler == "pbs":
        return {
            **{k: os.environ[k] for k in ("HOME", "USER", "LOGNAME", "SHELL") if k in os.environ},
            "PATH": PLAIN_PATH,
        }
    return dict(os.environ)

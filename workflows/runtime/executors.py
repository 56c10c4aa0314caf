"""Parsl's configuration for a campaign: one executor per site, one for the server's own work, one for evaluation.

Evaluation has its own, so that a long look at the last model never delays the next aggregation.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from apps.training.deadline import BLOCK_END_VARIABLE
from site_configs.library.site import Site
from site_configs.local import site as local_site
from workflows.planning.labels import EVALUATOR, LONGEST_DRAIN_S, SERVER
from workflows.runtime.orphans import TOKEN_VARIABLE

if TYPE_CHECKING:
    from parsl.config import Config
    from parsl.dataflow.memoization import Memoizer
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.base import ParslExecutor

    from workflows.planning.plan import Plan

PROJECT = Path(__file__).resolve().parents[2]
IDLE_S = 7 * 24 * 3600.0  # blocks are kept between rounds: to queue again costs more than to wait
FAILED_LOCAL_BLOCKS = 5  # as many blocks on this machine that fail in a row end an executor
STRATEGY_PERIOD_S = 1.0

RetryHandler = Callable[[Exception, Any], float]
BlockErrorHandler = Callable[[Any, Mapping[str, Any]], None]


def make_config(
    plan: Plan,
    run_dir: Path,
    memoizer: Memoizer,
    retry_handler: RetryHandler,
    patience: BlockErrorHandler,
    elsewhere: Sequence[ParslExecutor] = (),
) -> Config:
    """The configuration of a run.

    Args:
        plan: the checked campaign.
        run_dir: the run directory; Parsl's own files go below it.
        memoizer: knows what was done before.
        retry_handler: the cost of a failed task, out of the campaign's retries.
        patience: looks at the blocks of batch sites that fail.
        elsewhere: the executors of the sites that are reached through Globus, and what serves them.
    """
    from parsl.config import Config

    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    server = local_site(SERVER, run_dir)
    evaluator = local_site(EVALUATOR, run_dir, threads=plan.campaign.evaluation.threads)
    ours = [site for site in plan.sites.values() if site.route != "globus"]
    return Config(
        executors=[*elsewhere, *(make_executor(site, run_dir, patience) for site in (*ours, server, evaluator))],
        memoizer=memoizer,
        retries=plan.campaign.retries,
        retry_handler=retry_handler,
        run_dir=str(run_dir / "parsl"),
        strategy="simple",
        strategy_period=STRATEGY_PERIOD_S,
        max_idletime=IDLE_S,
        initialize_logging=False,
        usage_tracking=0,
    )


def make_executor(site: Site, run_dir: Path, patience: BlockErrorHandler | None = None) -> HighThroughputExecutor:
    """The executor of a site: one worker in each of its blocks, one block at a time, words encrypted.

    Raises:
        UserMistake: this host has no way to the site's compute nodes.
    """
    from parsl.executors import HighThroughputExecutor
    from parsl.jobs.error_handlers import windowed_error_handler

    provider = site.provider(worker_init(site))
    if site.block:
        provider.job_prefix = job_prefix(os.environ.get(TOKEN_VARIABLE, ""))  # type: ignore[attr-defined]
    local_patience = partial(windowed_error_handler, threshold=FAILED_LOCAL_BLOCKS)
    return HighThroughputExecutor(
        label=site.name,
        address=driver_address(site),
        max_workers_per_node=1,
        provider=provider,
        heartbeat_period=site.heartbeat_s,
        heartbeat_threshold=2 * site.heartbeat_s,
        drain_period=drain_s(site.block.walltime_s) if site.block else None,
        block_error_handler=patience if site.block and patience else local_patience,
        encrypted=True,
        interchange_launch_cmd=[
            sys.executable,
            str(PROJECT / "workflows" / "runtime" / "die_with_parent.py"),
            str(run_dir / "logs" / f"interchange-{site.name}.log"),
            sys.executable,
            "-P",  # without the current folder on sys.path: a user's own files there have common names
            "-m",
            "parsl.executors.high_throughput.interchange",
        ],
        working_dir=str(run_dir / "parsl"),
    )


def job_prefix(token: str) -> str:
    """How the names of all batch jobs of a run begin, so that they are found whatever was lost."""
    return f"cf-{token[:10]}"


def drain_s(walltime_s: int) -> int:
    """How long after its start a block takes on new tasks: one that begins later would hardly get anywhere."""
    return walltime_s - min(LONGEST_DRAIN_S, walltime_s // 10)


def driver_address(site: Site) -> str | None:
    """Where a site's workers find this driver; None where they have to try all its addresses.

    Raises:
        UserMistake: the interface or the address that the site's nodes reach is not on this host.
    """
    import psutil

    interfaces = psutil.net_if_addrs()
    if site.address:
        _require_own(site, {entry.address for entries in interfaces.values() for entry in entries})
    if site.address or not site.driver_interface:
        return site.address or None
    for entry in interfaces.get(site.driver_interface, ()):
        if entry.family.name == "AF_INET":
            return str(entry.address)
    raise UserMistake(
        f"sites.{site.name}: this host has no network interface {site.driver_interface!r},"
        f" only {', '.join(sorted(interfaces))}",
        remedy=f"Start on a login node of {site.machine}, or set sites.{site.name}.address to what its nodes reach",
    )


def _require_own(site: Site, own: set[str]) -> None:
    """Refuse an address that Parsl could not listen on."""
    import socket

    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(site.address, None)}
    except OSError:
        found = set()
    if not found & own:
        raise UserMistake(
            f"sites.{site.name}.address: {site.address} is not this host",
            remedy=f"Its own addresses are {', '.join(sorted(a for a in own if a.count('.') == 3))}",
        )


def worker_init(site: Site) -> str:
    """Shell lines before the workers of a site start: its set-up, its environment, this project's code."""
    values = {**site.environment, TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE, ""), "HF_HUB_DISABLE_TELEMETRY": "1"}
    lines = [f"export {BLOCK_END_VARIABLE}=$(($(date +%s) + {site.block.walltime_s}))"] if site.block else []
    lines += [site.setup] if site.setup else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    programs = site.python_env / "bin" if site.python_env else Path(sys.executable).parent
    lines += [
        f"export PATH={shlex.quote(str(programs))}:$PATH",
        f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",  # no folder of a script comes before it
    ]
    return "\n".join(lines)


def launch_command(site: Site, run_dir: Path) -> str:
    """What a block's job runs, for people: the port is chosen when the campaign starts."""
    from dataclasses import replace

    executor: Any = make_executor(replace(site, address="127.0.0.1"), run_dir)
    executor.all_addresses = {site.address or "ADDRESS"}
    executor.run_dir, executor.worker_port = str(run_dir / "parsl" / "000"), "PORT"
    executor.cert_dir, executor.logconf_path = str(Path(executor.logdir) / "certificates"), None
    executor.initialize_scaling()
    return str(executor._get_launch_command("0"))

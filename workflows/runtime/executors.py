"""Parsl's configuration for a campaign: one executor per site, and those of the server's own work.

On the driver's host evaluation has its own, so that a long evaluation of the last model never delays the next
aggregation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import UserMistake
from apps.base.own_packages import ROOT
from site_configs.library.site import Site
from site_configs.local import site as local_site
from workflows.planning.labels import LONGEST_DRAIN_S, SERVER, key_of
from workflows.runtime.orphans import TOKEN_VARIABLE
from workflows.runtime.worker_start import worker_init

if TYPE_CHECKING:
    from parsl.config import Config
    from parsl.dataflow.memoization import Memoizer
    from parsl.executors.base import ParslExecutor

    from workflows.planning.plan import Plan
    from workflows.runtime.site_executor import SiteExecutor

IDLE_S = 7 * 24 * 3600.0  # blocks are kept between rounds: to queue again costs more than to wait
STRATEGY_PERIOD_S = 1.0
HEARTBEAT_PERIOD_S = 30  # the longest time between two messages; how many may be missing is the site's setting
POLL_MS = 1000  # between two looks at whether to end: messages wake each process at once, and idle looks cost CPU time
WORKER_PORTS = (54_000, 56_000)  # of which an interchange takes one: what worker pools connect to
DRIVER_PORTS = (20_000, 32_000)  # three for each interchange, on this host alone; below those that Linux gives away

RetryHandler = Callable[[Exception, Any], float]
BlockErrorHandler = Callable[[Any, Mapping[str, Any]], None]


def make_config(
    plan: Plan,
    run_dir: Path,
    memoizer: Memoizer,
    retry_handler: RetryHandler,
    patience: BlockErrorHandler,
    on_loss: Callable[..., None],
    elsewhere: Sequence[ParslExecutor] = (),
) -> Config:
    """Make the Parsl configuration of a run.

    Args:
        plan: the checked campaign.
        run_dir: the run directory; Parsl's own files go below it.
        memoizer: returns the results of tasks that were done before.
        retry_handler: the cost of a failed task, out of the campaign's retries.
        patience: handles the blocks of batch sites that fail.
        on_loss: see ``LocalExecutor``.
        elsewhere: the executors of the sites that are reached through Globus, and what serves them.
    """
    from parsl.config import Config

    from workflows.runtime.local_workers import local_executors

    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    machines = {**plan.machines, SERVER: local_site(SERVER, run_dir)}  # which stages, wherever the server computes
    local = {label: site for label, site in machines.items() if site.route == "local"}
    batch = [make_executor(site, run_dir, patience) for site in machines.values() if site.route == "batch"]
    return Config(
        executors=[*elsewhere, *batch, *local_executors(local, run_dir / "logs", on_loss).values()],
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


def make_executor(site: Site, run_dir: Path, patience: BlockErrorHandler) -> SiteExecutor:
    """Make the executor of a batch site: one worker in each of its blocks, one block at a time, messages encrypted.

    Raises:
        UserMistake: this host has no network address that the site's compute nodes reach.
    """
    from workflows.runtime.site_executor import SiteExecutor

    assert site.block is not None
    provider = site.provider(worker_init(site))
    provider.job_prefix = job_prefix(os.environ.get(TOKEN_VARIABLE, ""))  # type: ignore[attr-defined]
    return SiteExecutor(
        label=site.name,
        address=driver_address(site),
        max_workers_per_node=1,
        provider=provider,
        worker_port_range=WORKER_PORTS,
        interchange_port_range=DRIVER_PORTS,
        poll_period=POLL_MS,
        heartbeat_period=min(HEARTBEAT_PERIOD_S, site.heartbeat_s),
        heartbeat_threshold=2 * site.heartbeat_s,
        drain_period=drain_s(site.block.walltime_s),
        block_error_handler=patience,
        encrypted=True,
        interchange_launch_cmd=[
            sys.executable,
            str(ROOT / "workflows" / "runtime" / "die_with_parent.py"),
            str(run_dir / "logs" / f"interchange-{site.name}.log"),
            sys.executable,
            str(ROOT / "workflows" / "runtime" / "interchange.py"),
        ],
        working_dir=str(run_dir / "parsl"),
    )


def job_prefix(token: str) -> str:
    """Return the prefix of the names of a run's batch jobs, by which they are found without any record of them."""
    return f"cf-{token[:10]}"


def drain_s(walltime_s: int) -> int:
    """Return how many seconds after its start a block accepts new tasks: a later one would have too little time."""
    return walltime_s - min(LONGEST_DRAIN_S, walltime_s // 10)


def driver_address(site: Site) -> str | None:
    """Return the address at which a site's workers reach this driver; None: they try all its addresses.

    Raises:
        UserMistake: this host does not have the interface or the address that the campaign names.
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
        f"{key_of(site.name)}: this host has no network interface {site.driver_interface!r},"
        f" only {', '.join(sorted(interfaces))}",
        remedy=f"Start on a login node of {site.machine}, or set {key_of(site.name)}.address to what its nodes reach",
    )


def _require_own(site: Site, own: set[str]) -> None:
    """Check that an address is one of this host, so that Parsl can listen on it."""
    import socket

    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(site.address, None)}
    except OSError:
        found = set()
    if not found & own:
        raise UserMistake(
            f"{key_of(site.name)}.address: {site.address} is not this host",
            remedy=f"Its own addresses are {', '.join(sorted(a for a in own if a.count('.') == 3))}",
        )


def launch_command(site: Site, run_dir: Path) -> str:
    """Return the command that a block's job runs, to be shown: the port is chosen when the campaign starts."""
    executor: Any = make_executor(replace(site, address="127.0.0.1"), run_dir, lambda _executor, _status: None)
    executor.all_addresses = {site.address or "ADDRESS"}
    executor.run_dir, executor.worker_port = str(run_dir / "parsl" / "000"), "PORT"
    executor.cert_dir, executor.logconf_path = str(Path(executor.logdir) / "certificates"), None
    executor.initialize_scaling()
    return str(executor._get_launch_command("0"))

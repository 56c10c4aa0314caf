"""Parsl's configuration for a campaign: one executor per site, one for the server's own work, one for evaluation.

Evaluation has its own, so that a long look at the last model never delays the next aggregation.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from site_configs.base import Site
from site_configs.local import site as local_site
from workflows.orphans import TOKEN_VARIABLE

if TYPE_CHECKING:
    from parsl.config import Config
    from parsl.dataflow.memoization import Memoizer
    from parsl.executors import HighThroughputExecutor

    from workflows.preflight import Plan

SERVER, EVALUATOR = "server", "evaluator"
PROJECT = Path(__file__).resolve().parent.parent
IDLE_S = 7 * 24 * 3600.0  # blocks are kept between rounds: to queue again costs more than to wait
FAILED_BLOCKS = 5  # as many blocks in a row that fail end an executor
STRATEGY_PERIOD_S = 1.0


def make_config(plan: Plan, run_dir: Path, memoizer: Memoizer) -> Config:
    """The configuration of a run."""
    from parsl.config import Config

    server = local_site(SERVER, run_dir)
    evaluator = local_site(EVALUATOR, run_dir, threads=plan.campaign.evaluation.threads)
    return Config(
        executors=[make_executor(site, run_dir) for site in (*plan.sites.values(), server, evaluator)],
        memoizer=memoizer,
        retries=plan.campaign.retries,
        retry_handler=retry_cost,
        run_dir=str(run_dir / "parsl"),
        strategy="simple",
        strategy_period=STRATEGY_PERIOD_S,
        max_idletime=IDLE_S,
        initialize_logging=False,
        usage_tracking=0,
    )


def make_executor(site: Site, run_dir: Path) -> HighThroughputExecutor:
    from parsl.executors import HighThroughputExecutor
    from parsl.jobs.error_handlers import windowed_error_handler

    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    return HighThroughputExecutor(
        label=site.name,
        address=site.address,
        max_workers_per_node=1,
        provider=site.provider(worker_init(site)),
        heartbeat_period=site.heartbeat_s,
        heartbeat_threshold=2 * site.heartbeat_s,
        block_error_handler=partial(windowed_error_handler, threshold=FAILED_BLOCKS),
        interchange_launch_cmd=[
            sys.executable, "-m", "workflows.leash", str(logs / f"interchange-{site.name}.log"),
            sys.executable, "-m", "parsl.executors.high_throughput.interchange",
        ],
        working_dir=str(run_dir / "parsl"),
    )  # fmt: skip


def worker_init(site: Site) -> str:
    """Shell lines before the workers of a site start: its set-up, its environment, this project's code."""
    values = {**site.environment, TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE, ""), "HF_HUB_DISABLE_TELEMETRY": "1"}
    lines = [site.setup] if site.setup else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    lines += [
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
    return "\n".join(lines)


def retry_cost(error: Exception, task: Any) -> float:
    """A lost worker or block is worth another try; what our own code refuses would be refused again."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    if isinstance(error, ManagerLost | WorkerLost):
        logging.getLogger(__name__).warning("%s lost its worker, trying again: %s", task["func_name"], error)
        return 1
    return math.inf

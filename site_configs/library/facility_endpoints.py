"""Globus Compute endpoints that a facility runs for all its users, with its own names for the values of a block.

Names, forms and defaults of ALCF's endpoints for Polaris and Crux are those of ALCF's guide and published template of
June 2026. A value that is sent replaces the endpoint's default as a whole, so that the parts of the default that
are needed are repeated here. The template drops values that it does not know without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from site_configs.library.queues import HOUR, MINUTE
from site_configs.library.site import Block

ROUND_IDLE_S = 4 * MINUTE  # the default of ALCF's endpoints


@dataclass(frozen=True)
class FacilityEndpoint:
    """What is particular to the endpoints of a facility.

    Attributes:
        scheduler: kind of the scheduler.
        worker_init: lines that its blocks need before those of the site.
        longest_queue_s: the endpoint ends a child whose tasks have not moved for so long.
    """

    scheduler: str
    worker_init: tuple[str, ...]
    longest_queue_s: float


FACILITY_ENDPOINTS: Mapping[str, FacilityEndpoint] = {
    "alcf": FacilityEndpoint(
        scheduler="pbs",
        worker_init=("export TMPDIR=/tmp", "export PATH=$PATH:/opt/globus-compute-agent/venv-py313/bin"),
        longest_queue_s=47 * HOUR,
    )
}


def alcf_values(
    block: Block, account: str, queue: str, select: str, directives: Sequence[str], worker_init: Sequence[str]
) -> dict[str, Any]:
    """Return the values of one block in the words of ALCF's endpoints.

    Args:
        block: batch job.
        account: as PBS is told.
        queue: as PBS is told.
        select: resources of each node, such as ``ngpus=4:system=polaris``.
        directives: lines that begin with ``#PBS``.
        worker_init: shell lines before the workers start.
    """
    hours, rest_s = divmod(block.walltime_s, HOUR)
    return {
        "account": account,
        "queue": queue,
        "walltime": f"{hours:02d}:{rest_s // 60:02d}:{rest_s % 60:02d}",
        "nodes_per_block": block.nodes,
        "init_blocks": 0,
        "min_blocks": 0,
        "max_blocks": 1,
        "max_workers_per_node": 1,
        "max_idletime": block.walltime_s if block.reuse == "pilot" else ROUND_IDLE_S,
        "launcher_type": "SimpleLauncher",  # one pool on the first node: training starts its ranks from there
        "select_options": select,
        "scheduler_options": "\n".join(directives),
        "worker_init": "\n".join(worker_init),
    }

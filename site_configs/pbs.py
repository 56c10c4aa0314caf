"""Any cluster under PBS Pro or OpenPBS; all its properties are settings.

For a cluster of your own, make a file with its settings, as ``slurm.py`` shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from site_configs.library.cluster import ClusterSettings, cluster_block, cluster_site, with_defaults
from site_configs.library.machine import Name, block_provider
from site_configs.library.site import Site

MPIEXEC = ("mpiexec", "-n", "{ranks}", "-ppn", "{ranks_per_node}")  # of PALS, MPICH, Intel MPI


def site(name: str, run_dir: Path, *, queue: Name = "", select: str = "", **settings: Unpack[ClusterSettings]) -> Site:
    """Return the site of a campaign on a PBS cluster whose commands are on this machine's PATH.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign, on a file system that the nodes see.
        queue: queue of qsub; empty: the cluster's default.
        select: more resources of each chunk, such as ``system=polaris``.
        **settings: resources, limits, environment and the rest, see ``ClusterSettings``.
    """
    cluster = with_defaults(settings)
    block = cluster_block("pbs", queue, cluster)
    resources = (
        f"ngpus={cluster['gpus']}" if cluster["gpus"] else "",
        f"mem={round(cluster['memory_gb'] * 1000)}mb" if cluster["memory_gb"] else "",
        select,
    )
    return cluster_site(
        name,
        run_dir,
        cluster,
        machine="a PBS cluster",
        block=block,
        provider=block_provider(
            block,
            ["-l place=scatter"] if block.nodes > 1 else [],
            site=name,
            poll_s=cluster["poll_s"],
            cores=cluster["cores"],
            select=":".join(filter(None, resources)),
        ),
        launch=MPIEXEC,
    )

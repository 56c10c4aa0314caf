"""Any cluster under Slurm; all its properties are settings.

For a cluster of your own, make a file with its settings:

    from functools import partial
    from site_configs import slurm

    site = partial(slurm.site, partition="gpu", cores=64, gpus=4, ranks_per_node=4, setup="module load cuda")
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from site_configs.library.cluster import ClusterSettings, cluster_block, cluster_site, rank_cores, with_defaults
from site_configs.library.machine import Name, block_provider
from site_configs.library.site import Site

SRUN = ("srun", "--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={ranks_per_node}", "--kill-on-bad-exit=1")


def site(
    name: str,
    run_dir: Path,
    *,
    partition: Name = "",
    qos: Name = "",
    exclusive: bool = False,
    **settings: Unpack[ClusterSettings],
) -> Site:
    """Return the site of a campaign on a Slurm cluster whose commands are on this machine's PATH.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign, on a file system that the nodes see.
        partition: partition of sbatch; empty: the cluster's default.
        qos: QOS of sbatch; empty: the cluster's default.
        exclusive: request whole nodes.
        **settings: resources, limits, environment and the rest, see ``ClusterSettings``.
    """
    cluster = with_defaults(settings)
    ranks_per_node, cores = cluster["ranks_per_node"], f"--cpus-per-task={rank_cores(cluster)}"
    block = cluster_block("slurm", partition or qos, cluster)
    directives = (
        *([f"--partition={partition}"] if partition else []),
        *([f"--qos={qos}"] if qos else []),
        cores,
        *([f"--mem={round(cluster['memory_gb'] * 1000)}M"] if cluster["memory_gb"] else []),
        *([f"--gpus-per-node={cluster['gpus']}"] if cluster["gpus"] else []),
        *(["--exclusive"] if exclusive else []),
    )
    return cluster_site(
        name,
        run_dir,
        cluster,
        machine="a Slurm cluster",
        block=block,
        provider=block_provider(block, directives, site=name, ranks_per_node=ranks_per_node, poll_s=cluster["poll_s"]),
        launch=(*SRUN, cores),
    )

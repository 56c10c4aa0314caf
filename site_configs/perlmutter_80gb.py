"""The 256 nodes of Perlmutter whose four A100 have 80 GB each; all else is as on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from site_configs import perlmutter
from site_configs.library.machine import GB, Account, StorageRoot, Walltime
from site_configs.library.site import Blocks, Site

NODES = 256
NODE = replace(perlmutter.NODE, device_memory_bytes=80 * GB)


def site(
    name: str,
    run_dir: Path,
    *,
    account: Account,
    storage_root: StorageRoot,
    nodes: Annotated[PositiveInt, Field(le=NODES)] = 1,
    walltime: Walltime = None,
    queue: str | None = None,
    blocks: Blocks = "pilot",
    ranks_per_node: Annotated[PositiveInt, Field(le=4)] = 4,
    modules: Sequence[str] = ("pytorch",),
    setup: str = "",
    python_env: Path | None = None,
    address: str = "",
) -> Site:
    """As ``perlmutter.site``, on nodes with 80 GB a GPU."""
    site = perlmutter.site(
        name,
        run_dir,
        account=account,
        storage_root=storage_root,
        nodes=nodes,
        walltime=walltime,
        queue=queue,
        blocks=blocks,
        ranks_per_node=ranks_per_node,
        modules=modules,
        setup=setup,
        python_env=python_env,
        address=address,
        constraint="gpu&hbm80g",
    )
    return replace(site, machine=site.machine.replace("(NERSC)", "80 GB (NERSC)"), node=NODE)

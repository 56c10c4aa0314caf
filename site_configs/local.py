"""A site of processes on this machine: for tests and for the embedded default campaign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from site_configs.library.machine import BACKENDS, thread_environment
from site_configs.library.site import Device, Ranks, Site

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider


def site(
    name: str,
    run_dir: Path,
    *,
    storage_root: Path | None = None,
    ranks: PositiveInt = 1,
    threads: PositiveInt = 1,
    device: Device = "cpu",
) -> Site:
    """Return a site with one worker process on this machine.

    Args:
        name: name of the site in the campaign.
        run_dir: run directory of the campaign.
        storage_root: folder of the site; default ``sites/NAME`` in the run directory.
        ranks: processes that train together, started by torch's own launcher; 1: the worker itself trains.
        threads: torch threads of a rank. Sites share this machine's cores: keep their sum at the number of cores.
        device: torch device: cpu, cuda or xpu.
    """
    return Site(
        name=name,
        machine="processes on this machine",
        route="local",
        storage_root=storage_root or run_dir / "sites" / name,
        provider=_provider,
        device=device,
        threads=threads,
        # OpenMP threads that spin while another worker needs the core cost more than they gain
        environment={**thread_environment(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        ranks=Ranks(per_node=ranks, backend=BACKENDS[device]),
    )


def _provider(worker_init: str) -> ExecutionProvider:
    from parsl.providers import LocalProvider

    return LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1, worker_init=worker_init)

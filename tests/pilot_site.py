"""A batch site without a scheduler: Parsl's own executor for such sites, its blocks are processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path

MACHINE = """
from dataclasses import replace
from datetime import date
from pathlib import Path

from parsl.providers import LocalProvider

from site_configs.library.site import Block, Queue, Site
from site_configs.local import site as local

BLOCK = Block("slurm", Queue("here", 1, 1, 3600, date(2026, 8, 19), "a test"), 1, 3600,
              command_environment={"PATH": "%s"})

def site(name: str, run_dir: Path) -> Site:
    provider = lambda worker_init: LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1, worker_init=worker_init)
    return replace(local(name, run_dir), route="batch", block=BLOCK, provider=provider, heartbeat_s=2)
"""


def pilot_site(folder: Path) -> Path:
    """Write the machine file of such a site; its ``squeue`` knows of no job.

    Args:
        folder: for the file and the commands.

    Returns:
        What a campaign names as the site's ``config``.
    """
    commands = folder / "commands"
    commands.mkdir()
    (commands / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (commands / "squeue").chmod(0o755)
    path = folder / "pilot.py"
    path.write_text(MACHINE % f"{commands}:{os.environ['PATH']}")
    return path

"""One of the four machines as ``site_configs`` has it, without what this computer lacks: devices and many cores.

Copied under the name of the machine, ``aurora.py`` for example, and named in the campaign as ``config``. Everything
else is the machine's own: queues, directives, launcher, network interfaces, set-up lines, mount points.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

machine = importlib.import_module(f"site_configs.{Path(__file__).stem}")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@wraps(machine.site)
def site(*arguments: Any, **settings: Any) -> Any:
    """Return the machine's site with ranks on processors."""
    made = machine.site(*arguments, **settings)
    return replace(
        made,
        device="cpu",
        threads=1,
        ranks=replace(made.ranks, backend="gloo"),
        environment={**made.environment, **ONE_THREAD},
        heartbeat_s=5,
        provider=partial(made.provider, poll_s=2),
    )

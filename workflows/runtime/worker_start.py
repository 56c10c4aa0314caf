"""Shell lines that the workers of a site start with."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from apps.base.own_packages import ROOT
from apps.base.processes import PRIVATE_UMASK
from apps.training.deadline import BLOCK_END_VARIABLE, END_VARIABLES
from site_configs.library.machine import thread_environment
from site_configs.library.site import Site
from workflows.runtime.orphans import TOKEN_VARIABLE

# What tasks import, with the largest pieces that they would otherwise load one after the other
PRELOADED = (
    *("apps.train", "apps.server", "apps.transfer", "apps.evaluate", "apps.site", "apps.training.shard"),
    *("torch", "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers", "peft"),
)


class ServerStart(NamedTuple):
    """Start of a local site's fork server: shell lines, and modules that it loads before the first fork."""

    lines: str
    modules: tuple[str, ...]


def worker_init(site: Site) -> str:
    """Return the shell lines before the workers of a site start: its set-up, its environment, this project's code."""
    values = {**site.environment, TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE, ""), "HF_HUB_DISABLE_TELEMETRY": "1"}
    if site.block:
        lines = [f"export {BLOCK_END_VARIABLE}=$(($(date +%s) + {site.block.walltime_s}))"]
    else:  # the driver's shell may have been inside an allocation
        lines = [f"unset {' '.join(END_VARIABLES)}"]
    lines += [site.setup] if site.setup else []
    lines += [f"umask {PRIVATE_UMASK:03o}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    programs = site.python_env / "bin" if site.python_env else Path(sys.executable).parent
    lines += [
        f"export PATH={shlex.quote(str(programs))}:$PATH",
        f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",  # no folder of a script comes before it
    ]
    return "\n".join(lines)


def server_start(site: Site) -> ServerStart:
    """Return how the server that forks a local site's worker is started; sites with equal answers share one.

    The number of threads is left to the worker, which sets it for torch. Before the fork it is one, so that no library
    starts threads when it is loaded. Where an accelerator is used nothing is loaded before the fork: its driver does
    not work in a process that was forked after it was first asked for anything.
    """
    environment = {**site.environment, **thread_environment(1)}
    modules = PRELOADED if site.device == "cpu" else ()
    return ServerStart(worker_init(replace(site, environment=environment)), modules)


def server_command(start: ServerStart) -> str:
    """Return the shell command of a fork server; its argument is the descriptor of its socket."""
    return f"{start.lines}\nexec python -m workflows.runtime.fork_server $1 {' '.join(start.modules)}"

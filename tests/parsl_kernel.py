"""A kernel over genuine Parsl executors, without a campaign around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel

from workflows.runtime.kernel import Kernel
from workflows.trust.edge import UNSIGNED


@contextmanager
def genuine_kernel(executors: Sequence[Any], folder: Path, **settings: Any) -> Iterator[Kernel]:
    """Yield a kernel that has Parsl alone; its executors end with it.

    Args:
        executors: one for each site.
        folder: Parsl writes below it.
        settings: further ones of Parsl.
    """
    config = Config(
        executors=executors,
        strategy="simple",
        run_dir=str(folder / "parsl"),
        initialize_logging=False,
        usage_tracking=0,
        **settings,
    )
    kernel = object.__new__(Kernel)
    kernel.edge = UNSIGNED
    with DataFlowKernel(config) as kernel.kernel:
        yield kernel

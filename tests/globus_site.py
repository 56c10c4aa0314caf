"""A site behind Globus Compute for tests: its storage in a folder, its executor, and a run's journal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training_site import PROJECT
from training_site import Site as TrainingSite

from apps.base.files import write_text
from apps.train import local_train
from apps.trust.policy_file import POLICY_VARIABLE
from site_configs.library.site import Endpoint
from site_configs.library.site import Site as SiteConfig
from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.bootstrap import PYTHON
from workflows.globus.compute.executor import SiteExecutor
from workflows.globus.compute.rate_limit import RateLimiter
from workflows.globus.compute.service import ComputeService
from workflows.records.journal import Journal

SLOW = """
import time
from pathlib import Path
from apps.remote import orphaned_block
from apps.training import loop as training

orphaned_block.CHECK_S, orphaned_block.IDLE_S = 0.5, 1.0

update = training.update_parameters

def slow(*arguments):
    time.sleep(float(Path({file!r}).read_text()))
    update(*arguments)

training.update_parameters = slow
"""


def client() -> Any:
    """Return the real client, with the login of the environment."""
    from globus_compute_sdk import Client

    return Client(do_version_check=False)


def quick_api() -> ComputeApi:
    """Return the API without the rate limit of normal use: the service runs only for the tests."""
    return ComputeApi(client, RateLimiter(requests=1000))


def site_config(root: Path, endpoint: str, **settings: Any) -> SiteConfig:
    own = {name: settings.pop(name) for name in ("files", "silence_s", "queue_s") if name in settings}
    settings = {"python_env": Path(sys.prefix), **settings}
    return SiteConfig(
        name="aurora",
        machine="test",
        route="globus",
        storage_root=root,
        provider=None,
        endpoint=Endpoint(endpoint, **own),
        **settings,
    )


def child_variables(folder: Path, policy: Path) -> dict[str, str]:
    """Return what the template of an endpoint sets for its workers; they find this project.

    Args:
        folder: each step of a training takes the seconds longer that ``slow_down`` writes there.
        policy: of the site.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLOW.format(file=str(folder / "slow_s")))
    slow_down(folder, 0.0)
    own = {PYTHON: sys.executable, POLICY_VARIABLE: str(policy)}
    return {"PYTHONPATH": f"{folder}:{PROJECT}", "OMP_NUM_THREADS": "1", **own}


def slow_down(folder: Path, slow_s: float) -> None:
    """Make every step at a site take longer, also of the training that runs; see ``child_variables``."""
    write_text(folder / "slow_s", str(slow_s))


class Driver:
    """Objects of a driver: journal, service, the executor of one site."""

    def __init__(self, folder: Path, config: SiteConfig, api: ComputeApi | None = None, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder / "journal.jsonl")
        self.service = ComputeService(client, self.journal, api or quick_api())
        self.executor = SiteExecutor(config, self.service, **settings)
        self.executor.start()

    def train(self, site: TrainingSite, **changes: Any) -> Any:
        """Submit a training and return its future."""
        return self.executor.submit(local_train, {}, *site.arguments(**changes))

    def events(self, name: str) -> list[dict[str, Any]]:
        return list(self.journal.events(name))

    def close(self) -> None:
        self.executor.shutdown()
        if self.service.thread:
            self.service.thread.join(20)
        self.journal.close()


@contextmanager
def driver(*arguments: Any, **settings: Any) -> Iterator[Driver]:
    running = Driver(*arguments, **settings)
    try:
        yield running
    finally:
        running.close()


Make = Callable[..., Driver]

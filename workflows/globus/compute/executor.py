"""A Parsl executor for one site that is reached through Globus Compute.

It keeps no blocks and no connections: the site's endpoint asks its scheduler for nodes, and all that has to be known to
go on after a crash of the driver stands in the journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from parsl.executors.base import ParslExecutor

from apps.base.errors import TaskError
from apps.training.task import task_identity
from site_configs.library.site import Site
from workflows.console.units import clock_text
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.liveness import Liveness, ReadState
from workflows.globus.compute.messages import call_key, pack, require_fits
from workflows.globus.compute.service import ComputeService

LOCAL_TRAIN = "apps.train:local_train"


class SiteExecutor(ParslExecutor):
    """Calls the functions of ``apps`` at a site.

    Args:
        site: of the route ``globus``, with its endpoint and its environment.
        service: shared by all sites of a driver.
        user_endpoint_config: values for the template of the site's endpoint: account, queue, walltime, ...
        files_config: the same for the endpoint on the login node.
        environment: variables for the project's Python at the site; no secrets.
        read_state: see ``Liveness``.
    """

    bad_state_is_set = False  # no failure of a site is for ever
    executor_exception: Exception | None = None

    def __init__(
        self,
        site: Site,
        service: ComputeService,
        user_endpoint_config: Mapping[str, Any] | None = None,
        files_config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        read_state: ReadState | None = None,
    ) -> None:
        super().__init__()
        assert site.endpoint is not None and site.python_env is not None  # resolved sites have both
        self.label, self.service = site.name, service
        self.environment = {**site.environment, **(environment or {})}
        python, endpoint = str(site.python_env / "bin" / "python"), site.endpoint
        self.target = CallTarget(
            site.name, endpoint.training, python, dict(user_endpoint_config or {}), endpoint.silence_s, endpoint.queue_s
        )
        files = CallTarget(site.name, endpoint.files, python, dict(files_config or {})) if endpoint.files else None
        self.liveness = Liveness(service, site.name, str(site.storage_root), files, read_state, self.environment)

    def start(self) -> None:
        self.service.tenders.append(self.liveness.tend)
        self.service.start()

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Ask the site to call ``func``, one of those in ``apps.remote.calls``; returns at once.

        Raises:
            UserMistake: the arguments are too large for Globus Compute.
            TaskError: they are not plain.
        """
        function = f"{func.__module__}:{func.__name__}"
        try:
            request = pack(function, args, self.environment)
            key = call_key(self.label, function, args)
        except (TypeError, ValueError) as error:
            raise TaskError(f"the arguments of {function} are not plain: {error}", site=self.label) from error
        require_fits(self.label, function, json.dumps([self.target.python, request]))
        work = task_identity(*args) if function == LOCAL_TRAIN else None
        future = self.service.submit(Call(key, self.target, function, request, work))
        return _follow(future)

    def shutdown(self) -> None:
        """Stop listening. What the site is doing goes on, and the next driver asks for it."""
        self.service.stop()
        super().shutdown()

    def open_tasks(self) -> int:
        """Calls that have been submitted to the site and not been answered."""
        return sum(bool(job.attempts) for job in self._jobs())

    def status_text(self) -> str | None:
        """What Globus says of the site's tasks, for people; None: all are answered."""
        calls = [job for job in list(self.service.jobs.values()) if job.target.site == self.label and job.journaled]
        return calls_text(calls, time.time())

    def outstanding(self) -> int:
        return len(self._jobs())

    @property
    def status_facade(self) -> dict[str, Any]:
        """Blocks that Parsl would know of: none, they are the endpoint's."""
        return {}

    @property
    def last_look(self) -> dict[str, Any]:
        """The last look at the site, as of ``apps.site.site_status``; ``seen_at``, the UNIX time when it was so;
        ``heard_at``, that of its last change."""
        return {**self.liveness.last, "seen_at": self.liveness.seen_at, "heard_at": self.liveness.heard_at}

    def newest_checkpoint(self) -> str | None:
        """The last checkpoint seen at the site, by its path below the site's root: it tells the task and the step."""
        return self.liveness.last.get("checkpoint")

    def storage_root(self) -> Path:
        return Path(self.liveness.root)

    def _jobs(self) -> list[Call]:
        return [job for job in self.service.open_jobs() if job.target.site == self.label and job.journaled]


def calls_text(calls: Sequence[Call], now: float) -> str | None:
    """How far the open calls to a site are, and when its endpoint was asked last; None: all are answered."""
    jobs = [job for job in calls if not job.over]
    if calls and not jobs:
        return None
    attempts = [attempt for job in jobs for attempt in list(job.attempts.values())]
    if not attempts:
        return "asking its endpoint"
    asked = max((attempt.asked_at for attempt in attempts if attempt.asked_at is not None), default=None)
    since = "asked" if asked is None else f"asked {clock_text(asked, now)}"
    states = {attempt.status for attempt in attempts}
    if "running" in states:
        return f"{since}; at work, its endpoint says"
    if states & {"waiting-for-nodes", "waiting-for-launch"}:
        return f"{since}; the task waits at its endpoint for a block"
    if any(job.over for job in calls):  # there are workers, or were; the service tells late that a task runs, or never
        return f"{since}; its endpoint has not said more yet"
    return f"{since}; its endpoint starts, or waits for a block"


def _follow(future: Future[Any]) -> Future[Any]:
    """A future of its own for each who asks: Parsl sets things on what it gets."""
    own: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            own.set_exception(error)
        else:
            own.set_result(done.result())

    future.add_done_callback(pass_on)
    return own

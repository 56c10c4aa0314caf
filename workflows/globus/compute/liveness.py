"""Signs of life from a site: seen through an endpoint on its login node, or by whatever way its files can be read.

A task that waits in a queue or computes for hours looks to Globus Compute like one that was lost with its endpoint.
The site's own files tell them apart.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from apps.base.identity import Place
from apps.training.leases import STALE_S
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.messages import pack
from workflows.globus.compute.service import ComputeService

logger = logging.getLogger(__name__)
LOOK_S = STALE_S  # between two looks
LOOK = "apps.site:site_status"

ReadState = Callable[[str], dict[str, Any] | None]


class Liveness:
    """Looks at a site as long as it has work.

    Args:
        service: looks through it where there is an endpoint for that.
        site: its name.
        root: the site's storage.
        files: the endpoint to look through, or None.
        read_state: another way to look: takes the site's name, and answers like ``apps.site.site_status``, whole or in
            part, or with None where nothing can be seen. It may take its time.
        environment: variables for the project's Python there.

    Attributes:
        last: what was seen last.
        seen_at: UNIX time at which it was so.
        heard_at: UNIX time of the last change in it.
    """

    def __init__(
        self,
        service: ComputeService,
        site: str,
        root: str,
        files: CallTarget | None = None,
        read_state: ReadState | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.service, self.site, self.root, self.files, self.read_state = service, site, root, files, read_state
        self.environment = dict(environment or {})
        self.last: dict[str, Any] = {}
        self.heard_at: float | None = None
        self.seen_at: float | None = None
        self.look_s, self.next_look, self.asked_at = LOOK_S, 0.0, 0.0
        self.looking: Future[Any] | None = None

    def tend(self, now: float) -> None:
        """Called by the service's thread: take up what was seen, and look again when it is time."""
        if self.looking is not None and self.looking.done():
            seen, self.looking = self.looking, None
            if seen.exception() is not None:
                logger.warning("cannot look at %s: %s", self.site, seen.exception())
            elif isinstance(seen.result(), dict):
                self._seen(seen.result(), now)
        working = [job for job in self._jobs() if job.attempts]
        if working and now >= self.next_look and self.looking is None:
            self.next_look, self.asked_at = now + self.look_s, time.time()
            self.looking = self._look()

    def _jobs(self) -> list[Call]:
        return [job for job in self.service.open_jobs() if job.target.site == self.site and job.work]

    def _look(self) -> Future[Any] | None:
        if self.read_state is not None:
            return _in_a_thread(self.read_state, self.site)
        if self.files is None:
            return None
        request = pack(LOOK, [Place(site=self.site, round=0), self.root], self.environment)
        return self.service.submit(Call(f"look-{uuid.uuid4()}", self.files, LOOK, request, journaled=False))

    def _seen(self, sight: dict[str, Any], now: float) -> None:
        names = ("progress", "checkpoint", "finished")
        news = any(sight.get(name) != self.last.get(name) for name in names) or bool(sight.get("claims"))
        self.last, self.seen_at = sight, moment_of(sight, self.asked_at, time.time())
        if news:
            self.heard_at = time.time()
        progress = sight.get("progress") or {}
        for job in self._jobs():
            mine = job.work in (sight.get("claims") or ()) or (news and progress.get("task_id") == job.work)
            job.sign(now, mine, sight.get("finished") == job.work)


def moment_of(sight: Mapping[str, Any], asked_at: float, answered_at: float) -> float:
    """When a site was as it was seen: what its clock says, if that lies between question and answer; UNIX time."""
    told = sight.get("time")
    return answered_at if told is None else min(max(float(told), asked_at), answered_at)


def _in_a_thread(read_state: ReadState, site: str) -> Future[Any]:
    """The site's way of looking must not hold up all others."""
    seen: Future[Any] = Future()

    def run() -> None:
        try:
            seen.set_result(read_state(site))
        except Exception as error:  # noqa: BLE001 - the edge of this thread
            seen.set_exception(error)

    threading.Thread(target=run, name=f"look-{site}", daemon=True).start()
    return seen

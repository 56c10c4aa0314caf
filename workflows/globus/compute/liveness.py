"""Liveness of a site: its state files, read through an endpoint on its login node or in another way.

For Globus Compute a task that waits in a queue or computes for hours looks like one that was lost with its endpoint.
The site's own files distinguish the two.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from apps.base.identity import Place
from apps.training.leases import STALE_S
from apps.trust.signed import Signed
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.messages import pack
from workflows.globus.compute.service import ComputeService
from workflows.trust.answers import checked_result
from workflows.trust.calls import SiteCall, answered

logger = logging.getLogger(__name__)
LOOK_S = STALE_S  # between two looks
LOOK = "apps.site:site_status"

ReadState = Callable[[str], dict[str, Any] | None]
SignOrder = Callable[[str, Any], Signed | None]


class Liveness:
    """Periodic look at a site as long as it has work.

    Args:
        service: runs the look where the site has an endpoint for files.
        site: its name.
        root: the site's storage.
        files: the endpoint for files, or None.
        read_state: another way to look: takes the site's name and returns the same as ``apps.site.site_status``, in
            whole or in part, or None where nothing can be read. It may be slow.
        campaign: name of the run.
        order: signs a request, given its function and arguments.

    Attributes:
        last: the last state that was read.
        seen_at: UNIX time at which the site was in this state.
        changed_at: UNIX time of its last change.
    """

    def __init__(
        self,
        service: ComputeService,
        site: str,
        root: str,
        files: CallTarget | None = None,
        read_state: ReadState | None = None,
        campaign: str = "",
        order: SignOrder = lambda _function, _args: None,
    ) -> None:
        self.service, self.site, self.root, self.files, self.read_state = service, site, root, files, read_state
        self.campaign, self.order = campaign, order
        self.last: dict[str, Any] = {}
        self.changed_at: float | None = None
        self.seen_at: float | None = None
        self.look_s, self.next_look, self.requested_at = LOOK_S, 0.0, 0.0
        self.pending: Future[Any] | None = None

    def poll(self, now: float) -> None:
        """Take up a finished look and start the next one when it is due; called by the service's thread."""
        if self.pending is not None and self.pending.done():
            done, self.pending = self.pending, None
            self._take(done, now)
        if self.pending is not None or now < self.next_look:
            return
        if any(call.attempts for call in self._open_trainings()):
            self.next_look, self.requested_at = now + self.look_s, time.time()
            self.pending = self._look()

    def _take(self, done: Future[Any], now: float) -> None:
        try:
            state = done.result()
            if isinstance(state, dict):
                self._update(state, now)
        except Exception as error:  # noqa: BLE001 - the edge of one site: what it answers must not reach the others
            logger.warning("cannot look at %s: %s: %s", self.site, type(error).__name__, error)

    def _open_trainings(self) -> list[Call]:
        return [call for call in self.service.open_calls() if call.target.site == self.site and call.training_id]

    def _look(self) -> Future[Any] | None:
        if self.read_state is not None:
            return in_thread(partial(self.read_state, self.site), f"look-{self.site}")
        if self.files is None:
            return None
        call = SiteCall(self.site, LOOK, (Place(site=self.site, round=0), self.root))
        request = pack(LOOK, call.args, self.campaign, self.order(LOOK, call.args))
        answer = self.service.submit(Call(f"look-{uuid.uuid4()}", self.files, LOOK, request, journaled=False))
        return answered(answer, lambda found: checked_result(found, call))

    def _update(self, state: dict[str, Any], now: float) -> None:
        names = ("progress", "checkpoint", "finished")
        changed = any(state.get(name) != self.last.get(name) for name in names) or bool(state.get("claims"))
        self.last, self.seen_at = state, state_time(state, self.requested_at, time.time())
        if changed:
            self.changed_at = time.time()
        progress = state.get("progress") or {}
        for call in self._open_trainings():
            leased = call.training_id in (state.get("claims") or ())
            active = leased or (changed and progress.get("task_id") == call.training_id)
            call.observe(now, active, state.get("finished") == call.training_id)


def state_time(state: Mapping[str, Any], requested_at: float, answered_at: float) -> float:
    """Return the UNIX time of a site's state: that of the site's clock, limited to the time of the request."""
    site_time = state.get("time")
    return answered_at if site_time is None else min(max(float(site_time), requested_at), answered_at)


def in_thread(work: Callable[[], Any], name: str) -> Future[Any]:
    """Do work in a thread of its own, so that a slow site does not delay the others."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:  # noqa: BLE001 - the edge of this thread
            result.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result

"""Parsl executor for one site that is reached through Globus Compute.

It keeps no blocks and no connections: the site's endpoint requests nodes from its scheduler, and everything that is
needed to continue after a crash of the driver is in the journal.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from parsl.executors.base import ParslExecutor

from apps.base.errors import TaskError
from apps.training.task import answers, task_identity
from apps.trust.signed import Signed
from site_configs.library.site import Site
from workflows.console.units import clock_text
from workflows.globus.compute.calls import Call, CallTarget
from workflows.globus.compute.liveness import Liveness, ReadState, in_thread
from workflows.globus.compute.messages import call_key, pack, require_fits, without_sites_own
from workflows.globus.compute.search import ResultSearch
from workflows.globus.compute.service import ComputeService
from workflows.trust.answers import checked_result, round_of
from workflows.trust.calls import SiteCall, answered, call_of
from workflows.trust.edge import UNSIGNED, Edge

LOCAL_TRAIN, FINISHED = "apps.train:local_train", "apps.train:finished_training"


class SiteExecutor(ParslExecutor):
    """Executor that calls the functions of ``apps`` at a site.

    Args:
        site: of the route ``globus``, with its endpoint and its environment.
        service: shared by all sites of a driver.
        user_endpoint_config: values for the template of the site's endpoint: account, queue, walltime, ...
        files_config: the same for the endpoint on the login node.
        campaign: name of the run.
        named: which of ``data`` and ``model`` the campaign names for this site.
        read_state: see ``Liveness``.
        find_manifest: takes the id of a training and returns the manifest that the site has written for it, or None;
            for a site without an endpoint for files. It may be slow.
    """

    bad_state_is_set = False  # no failure of a site is permanent
    executor_exception: Exception | None = None
    edge: Edge = UNSIGNED

    def __init__(
        self,
        site: Site,
        service: ComputeService,
        user_endpoint_config: Mapping[str, Any] | None = None,
        files_config: Mapping[str, Any] | None = None,
        campaign: str = "",
        named: Collection[str] = (),
        read_state: ReadState | None = None,
        find_manifest: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__()
        assert site.endpoint is not None  # resolved sites have one
        self.label, self.service, self.campaign, self.named = site.name, service, campaign, named
        endpoint = site.endpoint
        self.target = CallTarget(
            site.name, endpoint.training, dict(user_endpoint_config or {}), endpoint.silence_s, endpoint.queue_s
        )
        self.files = CallTarget(site.name, endpoint.files, dict(files_config or {})) if endpoint.files else None
        self.find_manifest, root = find_manifest, str(site.storage_root)
        self.liveness = Liveness(service, site.name, root, self.files, read_state, campaign, self._order)

    def _order(self, function: str, args: Any) -> Signed | None:
        return self.edge.order(function, args)

    def start(self) -> None:
        self.service.periodic.append(self.liveness.poll)
        self.service.start()

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Submit a call of ``func``, one of the functions in ``apps.remote.calls``; returns at once.

        Raises:
            UserMistake: the arguments are too large for Globus Compute.
            TaskError: they cannot be written as JSON.
        """
        del resource_specification, kwargs  # of Parsl's interface, not used here
        call = call_of(self.label, func, args, {})
        try:
            sent = without_sites_own(args, self.named)
            pack(call.function, sent, self.campaign)  # whatever is not plain is told before it is signed
            request = pack(call.function, sent, self.campaign, self.edge.order(call.function, sent))
            key = call_key(self.label, call.function, args)
        except (TypeError, ValueError) as error:
            raise TaskError(f"the arguments of {call.function} are not plain: {error}", site=self.label) from error
        require_fits(self.label, call.function, json.dumps([request]))
        training_id = task_identity(*args) if call.function == LOCAL_TRAIN else None
        search = ResultSearch(partial(self._find_result, call, training_id)) if training_id else None
        submitted = Call(key, self.target, call.function, request, training_id, search=search, round=round_of(call))
        result = self.service.submit(submitted)
        return answered(result, lambda found: self.edge.checked(found, call))

    def _find_result(self, call: SiteCall, training_id: str) -> Future[Any] | None:
        """Start a search for the manifest of a training; a wrong one counts as none. None: there is no way."""
        if self.files is None:
            find = self.find_manifest
            found = in_thread(lambda: find(training_id), f"search-{self.label}") if find else None
            return answered(found, lambda manifest: self._if_it_answers(call, manifest)) if found else None
        wanted = SiteCall(self.label, FINISHED, call.args)
        sent = without_sites_own(call.args, self.named)
        request = pack(FINISHED, sent, self.campaign, self.edge.order(FINISHED, sent))
        answer = self.service.submit(Call(f"find-{uuid.uuid4()}", self.files, FINISHED, request, journaled=False))
        return answered(answer, lambda found: self._signed(call, checked_result(found, wanted)["manifest"]))

    def _if_it_answers(self, call: SiteCall, manifest: Any) -> Any:
        """Return a manifest that answers a training call, else None."""
        found = self._signed(call, manifest)
        return found if found and answers(found, call.args[2]) else None

    def _signed(self, call: SiteCall, manifest: Any) -> Any:
        return None if manifest is None else self.edge.checked(manifest, call)

    def shutdown(self) -> None:
        """Stop polling. Tasks at the site continue, and the next driver asks for them."""
        self.service.stop()
        super().shutdown()

    def open_tasks(self) -> int:
        """Return the number of calls that are submitted to the site and not answered."""
        return sum(bool(call.attempts) for call in self._open_calls())

    def status_text(self) -> str | None:
        """Return the status of the site's tasks at Globus for display; None: all are answered."""
        calls = [call for call in list(self.service.calls.values()) if call.target.site == self.label]
        return calls_text([call for call in calls if call.journaled], time.time())

    def outstanding(self) -> int:
        return len(self._open_calls())

    @property
    def status_facade(self) -> dict[str, Any]:
        """Blocks known to Parsl: none, they belong to the endpoint."""
        return {}

    @property
    def last_look(self) -> dict[str, Any]:
        """The last look at the site, as of ``apps.site.site_status``.

        Also ``seen_at``, the UNIX time at which the site was in that state, and ``changed_at``, of its last change.
        """
        return {**self.liveness.last, "seen_at": self.liveness.seen_at, "changed_at": self.liveness.changed_at}

    def newest_checkpoint(self) -> str | None:
        """Return the last checkpoint seen at the site, by its path below the site's root; it names task and step."""
        return self.liveness.last.get("checkpoint")

    def storage_root(self) -> Path:
        return Path(self.liveness.root)

    def _open_calls(self) -> list[Call]:
        return [call for call in self.service.open_calls() if call.target.site == self.label and call.journaled]


def calls_text(calls: Sequence[Call], now: float) -> str | None:
    """Return the status of the calls to a site and the time of the last submission; None: all are answered."""
    open_calls = [call for call in calls if not call.over]
    if calls and not open_calls:
        return None
    attempts = [attempt for call in open_calls for attempt in list(call.attempts.values())]
    if not attempts:
        return "submitting to its endpoint"
    latest = max((attempt.submitted_at for attempt in attempts if attempt.submitted_at is not None), default=None)
    since = "submitted" if latest is None else f"submitted {clock_text(latest, now)}"
    states = {attempt.status for attempt in attempts}
    if "running" in states:
        return f"{since}; running at its endpoint"
    if states & {"waiting-for-nodes", "waiting-for-launch"}:
        return f"{since}; waiting at its endpoint for a block"
    if any(call.over for call in calls):  # there are workers, or were; the service reports late, or never, that it runs
        return f"{since}; no further status from its endpoint yet"
    return f"{since}; its endpoint is starting or waiting for a block"

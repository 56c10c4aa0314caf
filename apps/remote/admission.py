"""Check a driver's request against the site's own policy before anything of it is read or run, and log it.

Behind an endpoint the policy is the file that the endpoint's own template names, and without it nothing is done. For a
driver of the same account it is ``~/.crossfed/site.yaml``; there it guards against mistakes only, since that driver's
user may change it, and without it nothing is restricted.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from apps.artifacts.manifests import Manifest, remove_update
from apps.base.errors import PolicyRefused, StorageError
from apps.base.files import inside
from apps.training.checkpoints import FOLDER as CHECKPOINTS
from apps.training.task import Task, found_manifest
from apps.trust.orders import read_order
from apps.trust.policy import LOSSES, Policy, Usage, allowed, filled, refuse, require_update_size, withheld
from apps.trust.policy_file import POLICY_VARIABLE, account_policy, read_policy
from apps.trust.request_log import log_request
from apps.trust.site_request import ARGUMENTS, SiteRequest, site_request
from apps.trust.usage import TaskUsage, Traces, counted

logger = logging.getLogger(__name__)
TRAIN = "apps.train:local_train"
Run = Callable[..., Any]


def carry_out(call: Mapping[str, Any], run: Run, behind_endpoint: bool) -> Any:
    """Return the result of a call if the site's policy allows it.

    Args:
        call: as read from its JSON.
        run: the function that it names; receives the verified order, or None, as ``order``.
        behind_endpoint: True for a driver that reaches the site through an endpoint.

    Raises:
        OrderRefused: it was not signed so.
        PolicyRefused: the policy does not allow it; nothing has been done.
        CrossfedError: of the function.
    """
    place = _endpoint_policy() if behind_endpoint else account_policy()
    if not behind_endpoint and (call.get("function") not in ARGUMENTS or not os.path.lexists(place)):
        return run(*call["args"], **call.get("kwargs", {}), order=read_order(call, time.time()))
    policy = read_policy(place)
    with _logged(Path(policy.root)) as entry:
        entry.request = site_request(call)
        order = read_order(call, time.time())
        entry.request = replace(entry.request, driver=order.key if order else None)
        request = entry.request = filled(policy, entry.request)
        _require_interpreter(policy)
        return _run(policy, request, partial(run, order=order), entry)


def _endpoint_policy() -> Path:
    """Return the path of the policy of the endpoint that has started this process.

    Raises:
        PolicyRefused: its template names none.
    """
    named = os.environ.get(POLICY_VARIABLE)
    if not named:
        raise PolicyRefused(
            "the endpoint names no policy, so that nothing is allowed",
            rule="policy",
            asked="any request",
            allowed="none",
            remedy="Ask the operator of the site to run setup_site.py again and to copy its files",
        )
    return Path(named)


def _require_interpreter(policy: Policy) -> None:
    if policy.python is not None and sys.executable != policy.python:
        raise refuse("python", sys.executable, policy.python)


def _run(policy: Policy, request: SiteRequest, run: Run, entry: LogEntry) -> Any:
    """Check a request against the policy and the totals, and run it."""
    arguments = [request.arguments[name] for name in ARGUMENTS[request.function]]
    allowed(policy, request, None, time.time())
    hidden = LOSSES in withheld(policy, request)
    if request.function != TRAIN:
        result = run(*arguments)
        return _without_losses(result) if hidden else result
    root, task = Path(policy.root), Task(*arguments)
    entry.task_id = task.id
    log_request(root, request, task.id, "accepted")

    def check(spent: Usage) -> None:
        allowed(policy, request, spent, time.time())

    with counted(root, task.id, _usage(request), check, _traces(task)) as counting:
        manifest = run(*arguments)
        counting.trained = not manifest.get("reused", False)
    _require_small(policy, manifest)
    return _without_losses(manifest) if hidden else manifest


def _without_losses(result: Any) -> Any:
    """Return a copy of a result, its parts too, with None for each loss; an earlier policy may have let them leave."""
    hidden = {key: None for key in ("loss_first", "loss_last", "loss") if key in result}
    parts = {key: _without_losses(value) for key, value in result.items() if isinstance(value, dict)}
    return {**result, **parts, **hidden}


def _usage(request: SiteRequest) -> TaskUsage:
    work = request.work
    assert work is not None
    return TaskUsage(
        campaign=request.campaign,
        driver=request.driver,
        round=request.round,
        root=os.path.realpath(work["root"]),
        steps=request.steps,
        trainings=1,
        nodes=work["parallel"]["nodes"],
        first=time.time(),
        seconds=0.0,
        begun=False,
        done=False,
    )


def _traces(task: Task) -> Traces:
    return Traces(
        result=lambda: found_manifest(task) is not None,
        attempt=lambda: inside(task.root, CHECKPOINTS, task.id).is_dir(),
    )


def _require_small(policy: Policy, manifest: Manifest) -> None:
    """Delete an update that is larger than the policy allows.

    Raises:
        PolicyRefused: it was.
    """
    try:
        require_update_size(policy, manifest["artifact"]["nbytes"])
    except PolicyRefused:
        remove_update(manifest["store"], manifest["artifact"])
        raise


@dataclass
class LogEntry:
    """Request and task of a line in the site's log, filled in while the request is carried out."""

    request: SiteRequest | None = None
    task_id: str | None = None


@contextmanager
def _logged(root: Path) -> Iterator[LogEntry]:
    """Record what becomes of a request."""
    entry, answer = LogEntry(), "ok"
    try:
        yield entry
    except PolicyRefused as error:
        answer = f"refused by {error.rule}"
        raise
    except Exception as error:
        answer = type(error).__name__
        raise
    finally:
        try:
            log_request(root, entry.request, entry.task_id, answer)
        except StorageError as error:  # what was done is done, and the driver needs the answer
            logger.warning("%s", error)

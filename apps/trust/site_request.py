"""A driver's request by the names of its arguments, and the check of its form at the site.

Whatever of a request becomes part of a path or a command is checked here: names are names, digests are digests, numbers
are numbers, and what is not known is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apps.base.errors import PolicyRefused

ARGUMENTS = {  # of the functions that a site offers
    "apps.train:enrol": ("place", "work"),
    "apps.train:local_train": ("place", "work", "request", "base", "shard"),
    "apps.train:finished_training": ("place", "work", "request", "base", "shard"),
    "apps.site:site_status": ("place", "root"),
    "apps.site:examine_site": ("place", "root", "out"),
    "apps.site:block_started": ("place",),
}
REQUEST_KEYS = {"function", "args", "kwargs", "campaign", "metrics", "order"}
# keys of SiteWork and of what is in it; a test compares them with the types of apps/training and apps/models
WORK_KEYS = {"root", "out", "shared", "model", "data", "seed", "threads", "parallel", "code_version"}
MODEL_KEYS = {"source", "dtype", "seed", "adapter", "tiny", "traffic"}
DATA_KEYS = {"source", "tasks", "per_task", "max_tokens", "prompt", "loss_on"}
NAME, LONGEST_NAME = re.compile(r"\A[A-Za-z0-9_-][A-Za-z0-9_.+-]*\Z"), 200
SHA256, TASK_ID = re.compile(r"\A[0-9a-f]{64}\Z"), re.compile(r"\A[0-9a-f]{32}\Z")
TASK = re.compile(r"\A[^\x00-\x1f/\\.][^\x00-\x1f/\\]{0,199}\Z")
INTERFACE = re.compile(r"\A[A-Za-z0-9_.,:-]{0,64}\Z")
LARGEST = 10**15


@dataclass(frozen=True)
class SiteRequest:
    """What a driver asks of a site.

    Attributes:
        function: as ``module:function``, one of ``ARGUMENTS``.
        arguments: by name.
        campaign: its name; empty: not told.
        driver: id of the key that has signed the request; None: nobody has.
        metrics: what the driver wants to know; None: whatever may leave.
    """

    function: str
    arguments: Mapping[str, Any]
    campaign: str = ""
    driver: str | None = None
    metrics: tuple[str, ...] | None = None

    @property
    def work(self) -> Mapping[str, Any] | None:
        """Settings of the site that stay the same over a campaign, as ``SiteWork``."""
        return self.arguments.get("work")

    @property
    def root(self) -> str | None:
        """The site's private folder for this campaign."""
        return self.work["root"] if self.work is not None else self.arguments.get("root")

    @property
    def out(self) -> str | None:
        """Folder of what leaves the site."""
        found = self.work.get("out") or self.work["root"] if self.work is not None else self.arguments.get("out")
        return None if found is None else str(found)

    @property
    def base(self) -> Mapping[str, Any] | None:
        """The model that a training starts from."""
        return self.arguments.get("base")

    @property
    def training(self) -> Mapping[str, Any] | None:
        """Settings of a training."""
        return self.arguments["request"]["training"] if "request" in self.arguments else None

    @property
    def round(self) -> int:
        """Number of the round."""
        return int(self.arguments["place"]["round"])

    def with_work(self, work: Mapping[str, Any]) -> SiteRequest:
        """Return the request with other settings of the site."""
        return replace(self, arguments={**self.arguments, "work": work})


def site_request(call: Any, driver: str | None = None) -> SiteRequest:
    """Return a call, as read from its JSON, as a request.

    Args:
        call: ``{"function": ..., "args": [...]}``.
        driver: id of the key that has signed it; None: nobody has.

    Raises:
        PolicyRefused: a key or a function that a site does not know, or another number of arguments.
    """
    if not isinstance(call, dict):
        raise _malformed(type(call).__name__, "an object")
    for key, rule in (("environment", "environment"), ("python", "python")):
        if call.get(key):
            raise PolicyRefused(rule=rule, asked=ascii(call[key])[:200], allowed="what the site itself sets")
    unknown = sorted(set(map(str, call)) - REQUEST_KEYS - {"environment", "python"})
    if unknown or call.get("kwargs"):
        raise _malformed(unknown or "named arguments", sorted(REQUEST_KEYS))
    function, args, metrics = call.get("function"), call.get("args"), call.get("metrics")
    if not isinstance(function, str) or function not in ARGUMENTS:
        raise PolicyRefused(rule="function", asked=ascii(function)[:200], allowed=", ".join(ARGUMENTS))
    names = ARGUMENTS[function]
    if not isinstance(args, list) or len(args) != len(names):
        raise _malformed("other arguments", ", ".join(names))
    if metrics is not None and not (isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)):
        raise _malformed("metrics that are no list of names", "a list of names")
    wanted = None if metrics is None else tuple(metrics)
    campaign = call.get("campaign", "")
    return SiteRequest(function, dict(zip(names, args, strict=True)), campaign, driver, wanted)


def require_well_formed(request: SiteRequest) -> None:
    """Check the form of a request.

    Raises:
        PolicyRefused: by the rule ``request``.
    """
    try:
        _check_form(request)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _malformed(f"{type(error).__name__}: {error}", "the arguments of this version of crossfed") from None


def _check_form(request: SiteRequest) -> None:
    place = request.arguments["place"]
    _keys("place", place, {"site", "round"})
    _name("place.site", place["site"])
    _number("place.round", place["round"])
    if request.campaign:
        _name("campaign", request.campaign)
    for name in ("root", "out"):
        if name in request.arguments:
            _text(name, request.arguments[name])
    if request.work is not None:
        _check_work(request.work)
    if request.training is not None:
        _check_training(request)


def _check_work(work: Mapping[str, Any]) -> None:
    _keys("work", work, WORK_KEYS | {"withheld"})
    _keys("work.model", work["model"], MODEL_KEYS)
    _keys("work.data", work["data"], DATA_KEYS)
    for name in ("root", "out", "shared"):
        _text(f"work.{name}", work.get(name, ""))
    for part in ("model", "data"):
        _text(f"work.{part}.source", work[part]["source"])
    for task in work["data"]["tasks"]:
        _match("work.data.tasks", TASK, task)  # becomes the name of a file
    parallel = work["parallel"]
    for name in ("nodes", "ranks_per_node", "micro_batch"):
        _number(f"work.parallel.{name}", parallel[name])
    _number("work.threads", work["threads"])
    for word in parallel["launch"]:
        _text("work.parallel.launch", word)
    _match("work.parallel.interface", INTERFACE, parallel["interface"])
    for name in ("backend", "sharding"):
        _name(f"work.parallel.{name}", parallel[name])
    _name("work.model.dtype", work["model"]["dtype"])
    if work["model"]["adapter"]:
        _name("work.model.adapter.method", work["model"]["adapter"]["method"])


def _check_training(request: SiteRequest) -> None:
    order, base, shard = (request.arguments[name] for name in ("request", "base", "shard"))
    _number("request.training.steps", order["training"]["steps"])
    _text("request.training.device", order["training"]["device"])
    for name in ("optimizer_from", "left_over_from"):
        if order.get(name) is not None:
            _match(f"request.{name}", TASK_ID, order[name])
    _match("base.artifact.sha256", SHA256, base["artifact"]["sha256"])
    _number("base.artifact.nbytes", base["artifact"]["nbytes"])
    _text("base.store", base["store"])
    for sha256 in base.get("fetched", ()):
        _match("base.fetched", SHA256, sha256)
    _match("shard.shard_sha256", SHA256, shard["shard_sha256"])


def _keys(what: str, value: Any, known: set[str]) -> None:
    unknown = sorted(set(value) - known)
    if unknown or not isinstance(value, dict):
        raise _malformed(f"{what}.{unknown[0] if unknown else type(value).__name__}", sorted(known))


def _name(what: str, value: Any) -> None:
    _match(what, NAME, value)
    if len(value) > LONGEST_NAME:
        raise _malformed(f"{what} of {len(value)} characters", f"at most {LONGEST_NAME}")


def _match(what: str, pattern: re.Pattern[str], value: Any) -> None:
    if not isinstance(value, str) or not pattern.match(value):
        raise _malformed(f"{what} {ascii(value)[:100]}", f"a text like {pattern.pattern}")


def _text(what: str, value: Any) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise _malformed(f"{what} {ascii(value)[:100]}", "a text")


def _number(what: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise _malformed(f"{what} {ascii(value)[:100]}", f"a whole number up to {LARGEST}")


def _malformed(asked: Any, allowed: Any) -> PolicyRefused:
    shown = (", ".join(value) if isinstance(value, list) else str(value) for value in (asked, allowed))
    return PolicyRefused("", rule="request", **dict(zip(("asked", "allowed"), shown, strict=True)))

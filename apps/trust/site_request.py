"""A driver's request by the names of its arguments, and the check of its form at the site.

The form of the arguments is in ``request_form``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from apps.base.errors import PolicyRefused
from apps.trust.request_form import ARGUMENTS as FORM
from apps.trust.request_form import CAMPAIGN, malformed

ARGUMENTS = {  # of the functions that a site offers
    "apps.train:enrol": ("place", "work"),
    "apps.train:local_train": ("place", "work", "request", "base", "shard"),
    "apps.train:finished_training": ("place", "work", "request", "base", "shard"),
    "apps.site:site_status": ("place", "root"),
    "apps.site:examine_site": ("place", "root", "out"),
    "apps.site:block_started": ("place",),
}
REQUEST_KEYS = {"function", "args", "kwargs", "campaign", "metrics", "order"}


@dataclass(frozen=True)
class SiteRequest:
    """A driver's request to a site, its arguments by name.

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
        return self.work["out"] if self.work is not None else self.arguments.get("out")

    @property
    def base(self) -> Mapping[str, Any] | None:
        """The model that a training starts from."""
        return self.arguments.get("base")

    @property
    def training(self) -> Mapping[str, Any] | None:
        """Settings of a training."""
        return self.arguments["request"]["training"] if "request" in self.arguments else None

    @property
    def steps(self) -> int:
        """Steps of the training times the batches that each accumulates; 0: no training."""
        return self.training["steps"] * self.training["accumulate"] if self.training else 0

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
        raise malformed("the request", type(call).__name__, "an object")
    for key, rule in (("environment", "environment"), ("python", "python")):
        if call.get(key):
            raise PolicyRefused(rule=rule, asked=ascii(call[key])[:200], allowed="what the site itself sets")
    unknown = sorted(set(map(str, call)) - REQUEST_KEYS - {"environment", "python"})
    if unknown or call.get("kwargs"):
        raise malformed("the keys", unknown or "kwargs", ", ".join(sorted(REQUEST_KEYS)))
    function, args, metrics = call.get("function"), call.get("args"), call.get("metrics")
    if not isinstance(function, str) or function not in ARGUMENTS:
        raise PolicyRefused(rule="function", asked=ascii(function)[:200], allowed=", ".join(ARGUMENTS))
    names = ARGUMENTS[function]
    if not isinstance(args, list) or len(args) != len(names):
        raise malformed("args", type(args).__name__, f"a list of {', '.join(names)}")
    if metrics is not None and not (isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)):
        raise malformed("metrics", metrics, "a list of names")
    wanted = None if metrics is None else tuple(metrics)
    campaign = call.get("campaign", "")
    return SiteRequest(function, dict(zip(names, args, strict=True)), campaign, driver, wanted)


def require_well_formed(request: SiteRequest) -> None:
    """Check the form of a request.

    Raises:
        PolicyRefused: by the rule ``request``, or ``learning_files``.
    """
    CAMPAIGN("campaign", request.campaign)
    for name, value in request.arguments.items():
        FORM[name](name, value)

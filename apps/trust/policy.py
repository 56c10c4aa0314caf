"""The policy of a site: what its operator lets drivers do there, and the check of a request against it.

Every key of the policy is a rule; a refusal names the rule. ``any`` lifts a rule.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from apps.base.errors import PolicyRefused
from apps.trust.site_request import SiteRequest, require_well_formed

ANY: Final = None  # value of a rule that is lifted
IN, OUT = "in", "out"  # below the exchange folder
FULL = "full"  # training without an adapter
LOSSES = "losses"
METRICS = (LOSSES,)
HOUR_S = 3600.0
SHOWN = 300  # characters of a value in a refusal
OWN = ("usage", "keys", "requests.jsonl", "requests.1.jsonl")  # in the root: the site's own records, for no request


@dataclass(frozen=True)
class BaseModel:
    """A base model that a site lets drivers train.

    Attributes:
        source: folder at the site, or a model that comes with the project.
        fingerprint: of its weights, as ``apps.models.model.fingerprint`` computes it; None: any. It holds for training
            with an adapter only: otherwise the driver sends all weights.
    """

    source: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class Policy:
    """The rules of a site; ``ANY`` lifts a rule.

    Attributes:
        python: the interpreter of the project's environment.
        root: private folder of the site: shards, optimiser states, checkpoints, logs, the site's own records.
        exchange: folder with ``in`` (drivers write) and ``out`` (the site writes); None: both are below ``root``.
        data: folders of records, or the name of a set that comes with the project.
        models: base models.
        learning_files: SHA-256 of files with training code; this version takes none (``request_form``).
        launch: command that starts the ranks.
        device: torch device.
        max_model_bytes, max_update_bytes: size of one file.
        max_steps_per_request: of one training request; steps count as often as they accumulate.
        max_steps, max_rounds, max_node_hours: in total, over all campaigns; a round of a site is one training.
        metrics: what of ``METRICS`` may leave the site beside steps, counts of samples and times.
        methods: of adapters, and ``full``.
        campaigns: their names.
        drivers: ids of their keys.
        not_after: UNIX time.
    """

    python: str | None
    root: str
    exchange: str | None
    data: tuple[str, ...] | None
    models: tuple[BaseModel, ...] | None
    learning_files: tuple[str, ...] | None
    launch: tuple[str, ...] | None
    device: str | None
    max_model_bytes: int | None
    max_update_bytes: int | None
    max_steps_per_request: int | None
    max_steps: int | None
    max_rounds: int | None
    max_node_hours: float | None
    metrics: tuple[str, ...] | None
    methods: tuple[str, ...] | None
    campaigns: tuple[str, ...] | None
    drivers: tuple[str, ...] | None
    not_after: float | None


@dataclass(frozen=True)
class Usage:
    """Totals of a site over all campaigns, to compare with its policy.

    Attributes:
        steps: of training, times the batches that each accumulates.
        node_s: seconds of training times nodes.
        trainings: their number; one that is repeated because its result is gone counts again.
    """

    steps: int = 0
    node_s: float = 0.0
    trainings: int = 0

    def plus(self, other: Usage) -> Usage:
        """Return the sum of two usages."""
        return Usage(self.steps + other.steps, self.node_s + other.node_s, self.trainings + other.trainings)


def refuse(rule: str, asked: Any, allowed: Any) -> PolicyRefused:
    """Return the refusal by a rule."""
    return PolicyRefused(rule=rule, asked=_shown(asked), allowed=_shown(allowed))


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) or "none" if isinstance(value, tuple | list | frozenset) else str(value)
    return ascii(text)[1:-1][:SHOWN]


def allowed(policy: Policy, request: SiteRequest, spent: Usage | None, now: float) -> None:
    """Check a request, complete as ``filled`` returns it, against a policy.

    Args:
        policy: of the site.
        request: all that the driver asks for.
        spent: what the site has done without this request; None: the totals are not checked.
        now: UNIX time.

    Raises:
        PolicyRefused: the first rule that does not allow it.
    """
    require_well_formed(request)
    if policy.not_after is not ANY and now > policy.not_after:
        raise refuse("not_after", _moment(now), _moment(policy.not_after))
    _one_of("drivers", policy.drivers, request.driver or "an unsigned request")
    _one_of("campaigns", policy.campaigns, request.campaign or "a campaign without a name")
    _subset("metrics", policy.metrics, request.metrics)
    for check in (_folders, _data, _model, _launch):
        check(policy, request)
    if request.training:
        _training(policy, request, request.training)
        if spent is not None:
            _totals(policy, request, spent)


def filled(policy: Policy, request: SiteRequest) -> SiteRequest:
    """Return a request with the site's own values where the driver has left them open.

    These are the only source of records and the only base model of the policy, the launch command, and what must not
    leave the site.

    Raises:
        PolicyRefused: the request is malformed, or leaves open what the policy has several values for.
    """
    require_well_formed(request)
    work = request.work
    if work is None:
        return request
    data, model, parallel = dict(work["data"]), dict(work["model"]), dict(work["parallel"])
    if not data["source"]:
        data["source"] = _only("data", policy.data)
    if not model["source"]:
        model["source"] = _only("models", None if policy.models is ANY else tuple(m.source for m in policy.models))
    if not parallel["launch"] and policy.launch:
        parallel["launch"] = list(policy.launch)
    own = {"data": data, "model": model, "parallel": parallel, "withheld": list(withheld(policy, request))}
    if policy.exchange:
        own["shared"] = policy.exchange
    return request.with_work({**work, **own})


def withheld(policy: Policy, request: SiteRequest) -> tuple[str, ...]:
    """Return the metrics that must not leave the site."""
    told = METRICS if policy.metrics is ANY else policy.metrics
    wanted = told if request.metrics is None else request.metrics
    return tuple(name for name in METRICS if name not in told or name not in wanted)


def _only(rule: str, values: tuple[str, ...] | None) -> str:
    if not values or len(values) > 1:
        raise refuse(rule, "nothing", values or "what the campaign names for this site: the policy names none")
    return values[0]


def _one_of(rule: str, values: Sequence[str] | None, asked: str) -> None:
    if values is not ANY and asked not in values:
        raise refuse(rule, asked, values)


def _subset(rule: str, values: Sequence[str] | None, asked: Sequence[str] | None) -> None:
    if values is not ANY and asked is not None and not set(asked) <= set(values):
        raise refuse(rule, asked, values)


def _at_most(rule: str, limit: float | None, asked: float) -> None:
    if limit is not ANY and not asked <= limit:
        raise refuse(rule, asked, f"{limit}")


def _within(rule: str, folder: str, asked: str) -> None:
    """Check that a path is a folder or lies below it, with all links followed."""
    plain = Path(asked).is_absolute() and os.path.normpath(asked) == asked
    if not plain or not Path(os.path.realpath(asked)).is_relative_to(os.path.realpath(folder)):
        raise refuse(rule, asked, folder)


def _not_own(policy: Policy, rule: str, asked: str) -> None:
    """Check that a path is none of the site's own records, nor below one, with all links followed."""
    place = Path(os.path.realpath(asked))
    if any(place.is_relative_to(os.path.realpath(f"{policy.root}/{name}")) for name in OWN):
        raise refuse(rule, asked, f"what is not of the site's own records: {', '.join(OWN)}")


def _folders(policy: Policy, request: SiteRequest) -> None:
    incoming, outgoing = (f"{policy.exchange}/{name}" if policy.exchange else policy.root for name in (IN, OUT))
    store = None if request.base is None else request.base["store"]
    asked = (("root", policy.root, request.root), ("exchange", outgoing, request.out), ("exchange", incoming, store))
    for rule, folder, path in asked:
        if path is not None:
            _within(rule, folder, path)
            _not_own(policy, rule, path)


def _data(policy: Policy, request: SiteRequest) -> None:
    if request.work is not None:
        _one_of("data", policy.data, request.work["data"]["source"])


def _model(policy: Policy, request: SiteRequest) -> None:
    if request.work is None:
        return
    spec = request.work["model"]
    method = spec["adapter"]["method"] if spec["adapter"] else FULL
    _one_of("methods", policy.methods, method)
    if policy.models is ANY:
        return
    known = [model for model in policy.models if model.source == spec["source"]]
    if not known:
        raise refuse("models", spec["source"], tuple(model.source for model in policy.models))
    wanted = {model.fingerprint for model in known}
    if None in wanted:
        return
    if method == FULL:
        raise refuse("models", "full training, whose weights the driver sends", f"the weights of {spec['source']}")
    if request.base is not None and request.base.get("frozen") not in wanted:
        raise refuse("models", f"fingerprint {request.base.get('frozen') or 'unknown'}", tuple(map(str, wanted)))


def _launch(policy: Policy, request: SiteRequest) -> None:
    if request.work is None or policy.launch is ANY:
        return
    asked = tuple(request.work["parallel"]["launch"])
    if asked != policy.launch:
        raise refuse("launch", asked, policy.launch)


def _training(policy: Policy, request: SiteRequest, training: Mapping[str, Any]) -> None:
    _one_of("device", policy.device and (policy.device,), training["device"])
    _at_most("max_steps_per_request", policy.max_steps_per_request, request.steps)
    assert request.base is not None
    _at_most("max_model_bytes", policy.max_model_bytes, request.base["artifact"]["nbytes"])


def _totals(policy: Policy, request: SiteRequest, spent: Usage) -> None:
    _at_most("max_steps", policy.max_steps, spent.steps + request.steps)
    _at_most("max_rounds", policy.max_rounds, spent.trainings + 1)
    hours = spent.node_s / HOUR_S
    if policy.max_node_hours is not ANY and hours >= policy.max_node_hours:
        raise refuse("max_node_hours", f"more after {hours:.2f}", policy.max_node_hours)


def require_update_size(policy: Policy, nbytes: int) -> None:
    """Check the size of an update that a training has made.

    Raises:
        PolicyRefused: it is larger than the policy allows.
    """
    _at_most("max_update_bytes", policy.max_update_bytes, nbytes)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if math.isfinite(seconds) else "ever"

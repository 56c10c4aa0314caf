"""The form of a request is that of the apps' own types, and of what a driver really sends."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from training_site import Site, model_spec

from apps.artifacts.store import Artifact
from apps.base.errors import PolicyRefused
from apps.base.identity import Place
from apps.training.task import SiteWork, TrainRequest
from apps.trust import site_request
from apps.trust.signed import Signed

TRAIN = "apps.train:local_train"
TYPES = {"place": Place, "work": SiteWork, "request": TrainRequest}
NESTED = {"base": {"artifact": Artifact, "master": Artifact}, "shard": {"signed": Signed}}
PROBES = (None, True, -1, 3, 1.5, float("nan"), float("inf"), 10**400, "x\0", "x" * 10**4, [], [[]], [0], {}, {"x": []})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("form"))


def leaves(value: Any, hint: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of every object and value of an honest request with its type, from the apps' own types."""
    hint = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
    yield path, hint
    for part in get_args(hint) if get_origin(hint) is UnionType else (hint,):
        if is_typeddict(part) and value is not None:
            for key, inner in get_type_hints(part, include_extras=True).items():
                if key in value:
                    yield from leaves(value[key], inner, (*path, key))


def admits(hint: Any, value: Any) -> bool:
    """Return True if a value is of a type, as far as its elements go that the probes have."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and not 0 <= value < 2**63):
        return False
    if isinstance(value, str):
        return False if "\0" in value else str in kinds
    if isinstance(value, list):
        return value == [] and any(get_origin(kind) is list for kind in kinds)
    if isinstance(value, dict):
        return value == {} and any(get_origin(kind) is dict and get_args(kind)[1] is not int for kind in kinds)
    return (type(value) in kinds) or (value is None and NoneType in kinds) or (type(value) is int and float in kinds)


def changed(arguments: dict[str, Any], path: tuple[Any, ...], value: Any = ...) -> dict[str, Any]:
    """Return arguments with another value at a path; ``...``: with nothing there."""
    found = copy.deepcopy(arguments)
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return found


def form_of(arguments: dict[str, Any]) -> str:
    """Return ``ok``, or the rule that refuses the form of arguments."""
    try:
        site_request.require_well_formed(site_request.SiteRequest(TRAIN, arguments))
    except PolicyRefused as error:
        assert len(str(error)) < 1000
        return error.rule
    return "ok"


def test_the_form_of_a_request_is_that_of_the_apps_types(site: Site) -> None:
    """Every key of the types is known, needed as they say, and takes no other type; no other key is known."""
    names = site_request.ARGUMENTS[TRAIN]
    honest = copy.deepcopy(dict(zip(names, site.arguments(), strict=True)))
    honest["work"]["model"] |= {"traffic": "float32", "adapter": model_spec("ffa")["adapter"]}
    honest["base"]["fetched"] = ["0" * 64]
    assert form_of(honest) == "ok"
    found = [item for name, hint in TYPES.items() for item in leaves(honest[name], hint, (name,))]
    for name, parts in NESTED.items():  # the answers of stage_out and enrol: their types are those of their values
        hints = {key: parts.get(key, kind_of(value)) for key, value in honest[name].items()}
        found += [((name,), dict), *(i for k, h in hints.items() for i in leaves(honest[name][k], h, (name, k)))]
    assert len(found) > 70
    for path, hint in found:
        known = {key for place, _ in found if place[:-1] == path for key in place[-1:]}
        if known:
            assert form_of(changed(honest, (*path, "extra"), 1)) == "request", path
            strange = set(honest_at(honest, path)) - known
            assert not strange, (path, strange)
        for probe in PROBES:
            if not admits(hint, probe):
                assert form_of(changed(honest, path, probe)) == "request", (path, probe)
        if len(path) > 1 and path[-1] not in ("traffic", "fetched", "withheld", "left_over_from", "signed"):
            assert form_of(changed(honest, path)) == "request", path
    for path, hint in found:
        if get_origin(hint) is UnionType and NoneType in get_args(hint):
            assert form_of(changed(honest, path, None)) == "ok", path


def kind_of(value: Any) -> Any:
    return dict[str, Any] if isinstance(value, dict) else list[Any] if isinstance(value, list) else type(value)


def honest_at(arguments: dict[str, Any], path: tuple[Any, ...]) -> Any:
    for key in path:
        arguments = arguments[key]
    return arguments

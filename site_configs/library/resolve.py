"""Resolution of a site configuration: find a machine's function, check the user's settings, return the Site."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, validate_call

from site_configs.library.errors import SiteConfigError as SiteConfigError
from site_configs.library.errors import did_you_mean, first_problem
from site_configs.library.globus_settings import KEYS, apply_settings, split_settings
from site_configs.library.site import Site

SiteFunction = Callable[..., Site]
POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
MACHINES = Path(__file__).resolve().parent.parent


def available() -> list[str]:
    """Return the names of the machines that have a file here."""
    return sorted(p.stem for p in MACHINES.glob("*.py") if p.stem != "__init__")


def site_function(config: str) -> SiteFunction:
    """Return the function ``site`` of a machine's file.

    Args:
        config: name of a machine or path of a file.

    Raises:
        SiteConfigError: no such machine or file, or no such function in it.
    """
    module = _load_file(Path(config)) if config.endswith(".py") else _load_named(config)
    function = getattr(module, "site", None)
    if not callable(function):
        raise SiteConfigError(f"{config} has no function 'site'")
    places = [p for p in inspect.signature(function).parameters.values() if p.kind in POSITIONAL]
    if len([p for p in places if p.default is p.empty]) > 2 or (
        len(places) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in places)
    ):
        raise SiteConfigError(
            f"{config}: 'site' takes the site's name and the run directory, and settings by keyword:"
            " def site(name: str, run_dir: Path, *, account: str) -> Site"
        )
    return function


def _load_named(config: str) -> Any:
    if config not in available():
        hint = did_you_mean(config, available(), f"known: {', '.join(available())}, or a FILE.py")
        raise SiteConfigError(f"unknown site config {config!r}{hint}")
    return importlib.import_module(f"site_configs.{config}")


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"site_config_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SiteConfigError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks there for the names in a function's annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own file may fail in any way
        raise SiteConfigError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


@dataclass(frozen=True)
class Setting:
    """One setting that a machine's function takes."""

    required: bool
    type: Any


def settings_of(function: SiteFunction) -> dict[str, Setting]:
    """Return the settings that a machine's function takes.

    These are its keyword-only arguments, and the keys of the TypedDict of its ``**`` argument.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, TypeError, AttributeError):  # annotations of a user's file may name what it does not import
        parameters = inspect.signature(function).parameters.values()
    found: dict[str, Setting] = {}
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY:
            found[p.name] = Setting(p.default is p.empty, p.annotation)
        elif p.kind is p.VAR_KEYWORD and get_origin(p.annotation) is Unpack:
            (keys,) = get_args(p.annotation)
            hints = get_type_hints(keys, include_extras=True)
            found |= {key: Setting(key in keys.__required_keys__, hint) for key, hint in hints.items()}
    return found


def takes(config: str, key: str) -> bool:
    """Return True if a machine has a setting of its own of this name."""
    return key in settings_of(site_function(config))


def resolve_site(name: str, config: str, run_dir: Path, settings: Mapping[str, Any]) -> Site:
    """Return the Site of a campaign.

    Args:
        name: name of the site in the campaign.
        config: name of a machine or path of a file.
        run_dir: run directory of the campaign.
        settings: settings of the user: account, queue, paths, see ``settings_of``; and those that every machine takes,
            see ``GlobusSettings``.

    Raises:
        SiteConfigError: an unknown machine or setting, a missing setting, or a value that is refused.
    """
    function = site_function(config)
    known = settings_of(function)
    own, shared = split_settings(settings, known)
    _check_keys(known, name, config, own)
    return apply_settings(_call(function, name, config, run_dir, own), shared, run_dir, config)


def _call(function: SiteFunction, name: str, config: str, run_dir: Path, settings: Mapping[str, Any]) -> Site:
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        made = checked(name, run_dir, **settings)
    except ValidationError as error:
        raise SiteConfigError(first_problem(error)) from None
    except Exception as error:  # the user's own file may fail in any way
        raise SiteConfigError(str(error) or type(error).__name__) from error
    if not isinstance(made, Site):
        raise SiteConfigError(f"{config}: 'site' returned {made!r} instead of a Site")
    return made


def _check_keys(known: Mapping[str, Setting], name: str, config: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that the machine does not take, and settings that are missing."""
    for key in settings:
        if key not in known:
            taken = f"{config} takes: {', '.join(known)}; every machine takes: {', '.join(KEYS)}"
            raise SiteConfigError(f"{key}: unknown setting{did_you_mean(key, [*known, *KEYS], taken)}")
    missing = [key for key, setting in known.items() if setting.required and settings.get(key) is None]
    if missing:
        what = "; ".join(key + _meaning(known[key]) for key in missing)
        options = " ".join(f"--set sites.{name}.{key}=VALUE" for key in missing)
        raise SiteConfigError(f"{config} needs {what}. Write it under sites.{name}, or {options}")


def _meaning(setting: Setting) -> str:
    """Return the description in the annotation of a setting, if it has one."""
    notes = getattr(setting.type, "__metadata__", ())
    return next((f" ({note.description})" for note in notes if getattr(note, "description", None)), "")

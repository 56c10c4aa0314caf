"""From a name or a file to a Site: finds the function, checks the user's own settings against its arguments."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from site_configs.library.errors import SiteConfigError as SiteConfigError
from site_configs.library.globus_settings import KEYS, apply_settings, split_settings
from site_configs.library.site import Site

SiteFunction = Callable[..., Site]
MACHINES = Path(__file__).resolve().parent.parent


def available() -> list[str]:
    """Names of the machines that have a file here."""
    return sorted(p.stem for p in MACHINES.glob("*.py") if p.stem != "__init__")


def site_function(config: str) -> SiteFunction:
    """The function ``site`` of a machine's file, by the name of the machine or the path of the file.

    Raises:
        SiteConfigError: no such machine or file, or no such function in it.
    """
    module = _load_file(Path(config)) if config.endswith(".py") else _load_named(config)
    function = getattr(module, "site", None)
    if not callable(function):
        raise SiteConfigError(f"{config} has no function 'site'")
    return function


def _load_named(config: str) -> Any:
    if config not in available():
        close = difflib.get_close_matches(config, available(), 1)
        hint = f", did you mean {close[0]!r}?" if close else f"; there are: {', '.join(available())}, or a FILE.py"
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


def resolve_site(name: str, config: str, run_dir: Path, settings: Mapping[str, Any]) -> Site:
    """The Site of a campaign.

    Args:
        name: the site's name in the campaign.
        config: name of a machine or path of a file.
        run_dir: the campaign's run directory.
        settings: the user's own part: account, queue, paths, the keyword arguments of the machine's function; and
            what is taken for every machine, see ``GlobusSettings``.

    Raises:
        SiteConfigError: unknown machine or setting, a setting that is missing, or a value that cannot be.
    """
    function = site_function(config)
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    own, shared = split_settings(settings, known)
    _check_keys(function, known, name, config, own)
    return apply_settings(_made(function, name, config, run_dir, own), shared, run_dir, config)


def takes(config: str, key: str) -> bool:
    """Whether a machine has a setting of its own of this name."""
    return key in inspect.signature(site_function(config)).parameters


def _made(function: SiteFunction, name: str, config: str, run_dir: Path, settings: Mapping[str, Any]) -> Site:
    """What the machine's function makes of its own settings."""
    from pydantic import ConfigDict, ValidationError, validate_call

    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        made = checked(name, run_dir, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        raise SiteConfigError(f"{'.'.join(map(str, first['loc']))}: {what}") from None
    except Exception as error:  # the user's own file may fail in any way
        raise SiteConfigError(str(error) or type(error).__name__) from error
    if not isinstance(made, Site):
        raise SiteConfigError(f"{config}: 'site' returned {made!r} instead of a Site")
    return made


def _check_keys(
    function: SiteFunction, known: Mapping[str, inspect.Parameter], name: str, config: str, settings: Mapping[str, Any]
) -> None:
    """Refuse settings that the machine does not take, and say which it needs."""
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, [*known, *KEYS], 1)
            taken = f"; {config} takes: {', '.join(known)}; every machine takes: {', '.join(KEYS)}"
            hint = f", did you mean {close[0]!r}?" if close else taken
            raise SiteConfigError(f"{key}: unknown setting{hint}")
    missing = [key for key, p in known.items() if p.default is p.empty and settings.get(key) is None]
    if missing:
        what = "; ".join(key + _meaning(function, key) for key in missing)
        ways = " ".join(f"--set sites.{name}.{key}=VALUE" for key in missing)
        raise SiteConfigError(f"{config} needs {what}. Write it under sites.{name}, or {ways}")


def _meaning(function: SiteFunction, key: str) -> str:
    """What the machine's file says of a setting, where it does: the description of its annotation."""
    try:
        hint = get_type_hints(function, include_extras=True).get(key)
    except (NameError, TypeError):  # a user's file may name what it does not import
        return ""
    described = [note.description for note in getattr(hint, "__metadata__", ()) if hasattr(note, "description")]
    return f" ({described[0]})" if described else ""

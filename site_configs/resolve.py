"""From a name or a file to a Site: finds the function, checks the user's own settings against its arguments."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from site_configs.base import Site

SiteFunction = Callable[..., Site]
HELPERS = {"__init__", "base", "resolve"}


class SiteConfigError(ValueError):
    """The site cannot be made as asked; the text says why and what would do."""


def available() -> list[str]:
    """Names of the machines that have a file here."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in HELPERS)


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
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SiteConfigError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
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
        settings: the user's own part: account, queue, paths; the keyword arguments of the machine's function.

    Raises:
        SiteConfigError: unknown machine or setting, or a value of the wrong type.
    """
    from pydantic import ConfigDict, ValidationError, validate_call

    function = site_function(config)
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f", did you mean {close[0]!r}?" if close else f"; {config} takes: {', '.join(known)}"
            raise SiteConfigError(f"{key}: unknown setting{hint}")
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        made = checked(name, run_dir, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise SiteConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except Exception as error:  # the user's own file may fail in any way
        raise SiteConfigError(str(error) or type(error).__name__) from error
    if not isinstance(made, Site):
        raise SiteConfigError(f"{config}: 'site' returned {made!r} instead of a Site")
    return made

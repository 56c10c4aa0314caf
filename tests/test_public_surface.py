"""What users rely on is what the documents say: options, campaign keys, strategies, settings of sites, exit codes."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import yaml
from campaigns import PROJECT
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from site_configs.library.globus_settings import KEYS
from site_configs.library.resolve import available, settings_of, site_function
from workflows.console import command
from workflows.planning.campaign import Campaign, SiteEntry
from workflows.strategies import SECTIONS
from workflows.strategies.fedavg import SynchronousSection

DOCS = PROJECT / "docs"
REQUIRED = "required"


def table(page: str, *head: str) -> list[list[str]]:
    """Return the rows of the first table of a page whose head begins with these cells."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^\| {re.escape(' | '.join(head))}[^\n]*\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    assert found, f"{page} has no table {head}"
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in found[1].splitlines()]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_options_of_every_script() -> None:
    rows = table("campaign.md", "command", "what it does", "options")
    documented = {code(row[0])[0].split()[0]: sorted(code(row[2])) for row in rows}
    scripts = sorted(path.name for path in (PROJECT / "workflows").glob("*.py") if path.name != "__init__.py")
    with ThreadPoolExecutor(2) as pool:
        assert documented == dict(zip(scripts, pool.map(options_of, scripts), strict=True))


def options_of(script: str) -> list[str]:
    """Return the long options that the help of a script lists, ``--help`` left out."""
    environment = {**os.environ, "COLUMNS": "1000"}
    arguments = [sys.executable, PROJECT / "workflows" / script, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    listed = re.findall(r"^ +(-.*?)(?:  |$)", done.stdout, re.MULTILINE)
    return sorted({option for line in listed for option in re.findall(r"--[a-z-]+", line)} - {"--help"})


def test_the_keys_of_a_campaign_and_their_defaults() -> None:
    rows = [(code(row[0])[0], row[1]) for row in table("campaign.md", "key", "default", "meaning")]
    documented = {key: text if text == REQUIRED else yaml.safe_load(code(text)[0]) for key, text in rows if text}
    assert documented.pop("strategy") == Campaign.model_fields["strategy"].get_default().name
    assert documented == dict(keys_of(Campaign))
    assert [key for key, text in rows if not text] == ["sites.NAME.*"]


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of the schema with their defaults; those of the strategies are in a table of their own."""
    for name, field in model.model_fields.items():
        if prefix + name == "strategy":
            continue
        kinds = (SiteEntry,) if prefix + name == "sites" else (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if is_section(kind)]
        if inner and str not in kinds:  # a name in place of a section is one key
            yield from keys_of(inner[0], f"{prefix}{name}.{'NAME.' if prefix + name == 'sites' else ''}")
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, REQUIRED if default is PydanticUndefined else plain(default)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def plain(value: Any) -> Any:
    """Return a default as YAML has it."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return str(value) if isinstance(value, Path) else value


def test_the_strategies_and_their_settings() -> None:
    rows = table("strategies.md", "strategy", "rounds", "server", "source", "settings and defaults")
    shared = {code(row[0])[0]: yaml.safe_load(code(row[1])[0]) for row in table("strategies.md", "setting", "default")}
    assert [code(row[0])[0] for row in rows] == sorted(SECTIONS, key=[code(row[0])[0] for row in rows].index)
    for row in rows:
        section = SECTIONS[code(row[0])[0]]
        documented = yaml.safe_load("{" + ", ".join(code(row[4])) + "}")
        has_rounds = issubclass(section, SynchronousSection)
        assert row[1] == ("yes" if has_rounds else "no")
        if has_rounds:
            documented |= shared
        fields = {name: field for name, field in section.model_fields.items() if name != "name"}
        assert documented == {name: plain(field.get_default()) for name, field in fields.items()}, row[0]


def test_the_settings_of_the_machines() -> None:
    documented: dict[str, dict[str, str]] = {machine: {} for machine in available()}
    for settings, default, machines, _ in table("machines.md", "setting", "default", "machines"):
        for machine in machines.split(", "):
            documented[machine] |= dict.fromkeys(code(settings), default.strip("`"))
    for machine, known in documented.items():
        function = site_function(machine)
        taken = settings_of(function)
        assert known.keys() == taken.keys(), machine
        assert {name for name in taken if taken[name].required} == {name for name in known if known[name] == REQUIRED}
        for parameter in inspect.signature(function).parameters.values():  # the others share theirs, see machine.py
            if parameter.kind is parameter.KEYWORD_ONLY and known[parameter.name] != REQUIRED:
                assert known[parameter.name] in (repr(parameter.default), "(several)"), f"{machine}: {parameter.name}"


def test_the_settings_of_the_globus_route() -> None:
    rows = table("globus.md", "setting", "default", "meaning")
    assert sorted(name for row in rows for name in code(row[0])) == sorted(KEYS)


def test_the_exit_codes() -> None:
    codes = [int(code(row[0])[0]) for row in table("campaign.md", "code", "meaning")]
    assert codes == [command.DONE, command.FAILED, command.MISTAKE, command.INTERRUPTED]
    named = [int(number) for number in re.findall(r"\b\d+\b", command.EXIT_CODES)]
    assert named == codes

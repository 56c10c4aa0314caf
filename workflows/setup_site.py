"""Write what a facility's Globus Compute endpoint needs, and the list of what a person does there.

python workflows/setup_site.py polaris --set account=ABC --set storage_root=DIR --set python_env=DIR [--out DIR]
python workflows/setup_site.py --campaign CAMPAIGN.yaml --site NAME [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from workflows.console.command import EXIT_CODES, carry_out, say

if TYPE_CHECKING:
    from site_configs.library.site import Site
    from workflows.globus.setup.template import EndpointOptions

WORDS = """Writes to DIR:
  CHECKLIST.md     what to do at the facility, in order, with the commands
  endpoints.sh     starts the agents, keeps them, ends them
  train/           the endpoint whose batch jobs train
  files/           an endpoint on a login node, which looks at files while the other one queues

The settings are those of the site in a campaign; python_env is the project's environment at the facility.

"""
NOT_YET = "00000000-0000-4000-8000-000000000000"  # the endpoint has no id before it is set up
EXECUTABLE = 0o755
SHORTEST_BARE_S = 60


@dataclass(frozen=True)
class SetupRequest:
    """Which machine, with which settings of a campaign, under which name."""

    name: str
    config: str
    settings: dict[str, Any]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="setup_site.py",
        description="Set up a facility for the route through Globus.",
        epilog=WORDS + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a machine of site_configs, or a FILE.py")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="a setting of the site: account=ABC",
    )
    parser.add_argument("--campaign", type=Path, metavar="CAMPAIGN.yaml", help="take the settings from there")
    parser.add_argument("--site", metavar="NAME", help="the site in the campaign; alone: its name (default: CONFIG)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: endpoints/NAME")
    parser.add_argument(
        "--agent",
        type=Path,
        metavar="DIR",
        help="the agent's own environment at the facility; default: globus-agent beside python_env",
    )
    parser.add_argument(
        "--idle",
        metavar="TIME",
        help="give an idle block back after so long: 30m; default: 4h where it is kept over rounds, else 1m",
    )
    parser.add_argument("--no-files", action="store_true", help="no endpoint on a login node")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return carry_out(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Write the files and say what comes next.

    Raises:
        UserMistake: an unknown machine, a setting that is missing or cannot be.
    """
    from workflows.globus.setup.checklist import endpoints_folder
    from workflows.globus.setup.template import EndpointOptions, default_agent

    request = requested(options)
    site = made(request)
    assert site.python_env is not None
    agent = options.agent or default_agent(site.python_env)
    refuse_shared_code(site, request, {"python_env": site.python_env, "--agent": agent})
    choices = EndpointOptions(agent, duration(options.idle) if options.idle else None)
    folder = options.out or Path("endpoints") / request.name
    for name, text in endpoint_files(site, request, choices, not options.no_files).items():
        write(folder / name, text)
    (folder / "endpoints.sh").chmod(EXECUTABLE)
    say(f"Written to {folder} for {site.machine}. Read {folder / 'CHECKLIST.md'}: it says what to do there, in order.")
    there = shlex.quote(str(endpoints_folder(Path(str(request.settings["storage_root"])), site.name)))
    say("Copy it to a file system that the compute nodes can write to, but not into the collection; for example:")
    say(f"  ssh HOST mkdir -p {there} && rsync -a {shlex.quote(str(folder))}/ HOST:{there}/")


def requested(options: argparse.Namespace) -> SetupRequest:
    """The machine and its settings, from the command line or from a campaign and then the command line."""
    from apps.base.errors import UserMistake
    from workflows.planning.campaign_file import apply_set, read_yaml

    settings: dict[str, Any] = {}
    name, config = options.site, options.config
    if options.campaign:
        sites = read_yaml(options.campaign).get("sites") or {}
        if name not in sites:
            there = f"--site NAME says which of {', '.join(sites)}" if not name else f"there is no site {name}"
            raise UserMistake(f"{options.campaign}: {there}", remedy=f"Its sites are {', '.join(sites)}")
        entry = dict(sites[name] or {})
        config = config or entry.get("config") or name
        settings = {key: value for key, value in entry.items() if key not in ("config", "tasks", "data", "model")}
    if not config:
        raise UserMistake("name a machine, or --campaign FILE --site NAME", remedy="See --help")
    for text in options.sets:
        apply_set(settings, text)
    return SetupRequest(name or Path(config).stem, config, settings)


def made(request: SetupRequest) -> Site:
    """The site, as a campaign will see it once its endpoint has an id.

    Raises:
        UserMistake: a setting that is missing or cannot be.
    """
    from apps.base.errors import UserMistake
    from site_configs.library.resolve import SiteConfigError, resolve_site

    settings = {"endpoint": NOT_YET, **request.settings, "route": "globus"}
    if "collection" not in settings and settings.get("carrier") in (None, "globus"):
        settings["carrier"] = "copy"  # a guest collection is only made on the way
    try:
        return resolve_site(request.name, request.config, Path("runs").absolute() / "setup", settings)
    except SiteConfigError as error:
        told = str(error).replace(f"--set sites.{request.name}.", "--set ")
        raise UserMistake(f"{request.config}: {told}") from None


def refuse_shared_code(site: Site, request: SetupRequest, places: Mapping[str, Path]) -> None:
    """Raises UserMistake if one of these folders would lie in the collection, which is usually made later."""
    from site_configs.library.site import Collection
    from workflows.globus.setup.checklist import needs_collection
    from workflows.planning.storage import refuse_shared

    settings, collection = request.settings, site.collection
    if not needs_collection(settings):
        return
    if "collection" not in settings or collection is None:
        collection = Collection(NOT_YET, Path(str(settings.get("collection_folder") or settings["storage_root"])))
    for key, path in places.items():
        refuse_shared(f"{request.config}: {key}", path, collection)


def duration(text: str) -> int:
    """Seconds of ``30m``; a number alone is seconds, too, and must be a minute or more: ``3`` means another unit.

    Raises:
        UserMistake: it is none, or has no unit and is very short.
    """
    from apps.base.errors import UserMistake
    from site_configs.library.queues import parse_walltime

    try:
        found_s = parse_walltime(text)
    except ValueError:
        raise UserMistake(f"--idle {text}: not a length of time such as 30m or 4h") from None
    if text.strip().isdigit() and found_s < SHORTEST_BARE_S:
        number = text.strip()
        raise UserMistake(f"--idle {text}: it has no unit", remedy=f"Write {number}s, {number}m or {number}h")
    return found_s


def endpoint_files(site: Site, request: SetupRequest, choices: EndpointOptions, files: bool) -> dict[str, str]:
    """All files by their names in the folder."""
    from workflows.globus.setup import checklist as words
    from workflows.globus.setup import template

    found = {
        "CHECKLIST.md": words.checklist(site, request.config, request.settings, choices, files),
        "endpoints.sh": start_script(choices, [words.TRAINING, *([words.FILES] if files else [])]),
    }
    found |= one_endpoint(words.TRAINING, f"crossfed {site.name}", template.training_template(site, choices), site)
    if files:
        found |= one_endpoint(words.FILES, f"crossfed {site.name} files", template.files_template(site, choices), None)
    if site.block and site.block.command_environment:
        variables = template.environment_file(site.block.command_environment)
        found[f"{words.TRAINING}/user_environment.yaml"] = variables
    return found


def one_endpoint(folder: str, display_name: str, text: str, site: Site | None) -> dict[str, str]:
    from workflows.globus.setup.template import core_config, schema

    return {
        f"{folder}/config.yaml": core_config(display_name),
        f"{folder}/user_config_template.yaml.j2": text,
        f"{folder}/user_config_schema.json": json.dumps(schema(site), indent=2) + "\n",
    }


def start_script(choices: EndpointOptions, endpoints: Sequence[str]) -> str:
    """``endpoints.sh``, which starts them."""
    from workflows.globus.setup.template import HEARTBEAT_S

    text = (Path(__file__).parent / "globus" / "setup" / "supervisor.sh").read_text()
    values = {
        "@AGENT@": shlex.quote(str(choices.agent / "bin")),
        "@ENDPOINTS@": " ".join(endpoints),
        "@PAUSE_S@": str(3 * HEARTBEAT_S + HEARTBEAT_S // 2),
    }
    for place, value in values.items():
        text = text.replace(place, value)
    return text


def write(path: Path, text: str) -> None:
    """Write a file whose folder nobody else may look into, as the agent wants it."""
    from apps.base.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, text)


if __name__ == "__main__":
    sys.exit(main())

"""Write the files of a facility's Globus Compute endpoint, and a checklist of what a person does there.

python workflows/setup_site.py polaris --set account=ABC --set storage_root=DIR --set python_env=DIR [--out DIR]
python workflows/setup_site.py --campaign CAMPAIGN.yaml --site NAME [--out DIR]
python workflows/setup_site.py --key STORAGE_ROOT   (at the facility)
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "base"))
    from own_packages import put_project_first

    put_project_first()

from apps.base.errors import CrossfedError, UserMistake
from apps.base.files import write_text
from apps.trust.keys import key_id, private_key, public_key
from apps.trust.policy_file import NAME as POLICY_FILE
from apps.trust.site_answers import FOLDER as KEYS
from apps.trust.site_answers import KEY as SITE_KEY
from site_configs.library.queues import parse_duration
from site_configs.library.resolve import SiteConfigError, resolve_site
from site_configs.library.site import Collection, Site
from workflows.console.command import EXIT_CODES, carry_out, leave, say
from workflows.globus.setup.checklist import needs_collection, shared_folder
from workflows.globus.setup.endpoint_files import endpoint_files
from workflows.globus.setup.policy import Offered
from workflows.globus.setup.template import EndpointOptions, default_agent, endpoints_folder
from workflows.planning.campaign import machine_settings
from workflows.planning.overrides import apply_set
from workflows.planning.storage import refuse_shared
from workflows.planning.yaml_file import read_yaml
from workflows.records.driver_key import driver_key

EPILOG = """Writes to DIR:
  CHECKLIST.md     what to do at the facility, in order, with the commands
  crossfed-site.yaml  the site's policy: what campaigns may do there; the operator checks it
  endpoints.sh     starts the agents, restarts them, stops them
  train/           the endpoint whose batch jobs train
  files/           an endpoint on a login node, which reads files while the other one queues

The settings are those of the site in a campaign; python_env is the project's environment at the facility.

"""
NO_ENDPOINT_YET = "00000000-0000-4000-8000-000000000000"  # the endpoint has no id before it is set up
EXECUTABLE, OWNER_ONLY = 0o700, 0o600
SHORTEST_BARE_S = 60


@dataclass(frozen=True)
class SetupRequest:
    """The machine to set up: its name in the campaign, its file, its settings."""

    name: str
    config: str
    settings: dict[str, Any]
    offered: Offered


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="setup_site.py",
        description="Set up a facility for the route through Globus.",
        epilog=EPILOG + EXIT_CODES,
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
    parser.add_argument("--campaign", type=Path, metavar="CAMPAIGN.yaml", help="read the settings from it")
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
    parser.add_argument(
        "--function",
        type=UUID,
        metavar="UUID",
        help="the only function that the endpoints accept; default: the one that this login registers",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="STORAGE_ROOT",
        help="at the facility: make the site's key there, unless it has one, and show its public half; nothing else",
    )
    parser.add_argument("--no-files", action="store_true", help="no endpoint on a login node")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return carry_out(lambda: show_key(options.key) if options.key else work(options))


def show_key(storage_root: Path) -> None:
    """Make the key of a site, unless it has one, and print its public half.

    Raises:
        StorageError: it cannot be written, or others can read it.
    """
    path = storage_root / KEYS / SITE_KEY
    public = public_key(private_key(path))
    say(f"The key of this site is {path}: keep a copy of it here, and give it to nobody. Its id is {key_id(public)}.")
    say("What it signs is checked with its public half, which belongs into the campaign, as sites.NAME.public_key:")
    say(public)


def work(options: argparse.Namespace) -> None:
    """Write the files and print the next step.

    Raises:
        UserMistake: an unknown machine, a missing setting, or an invalid one.
    """
    request = requested(options)
    site = made(request)
    assert site.python_env is not None
    agent = options.agent or default_agent(site.python_env)
    own = {"storage_root": site.storage_root, "python_env": site.python_env, "--agent": agent}
    refuse_shared_folders(site, request, own)
    place = endpoints_folder(Path(str(request.settings["storage_root"])), site.name)
    idle_s = duration(options.idle) if options.idle else None
    offered = replace(request.offered, driver=key_id(public_key(driver_key())))
    endpoint = EndpointOptions(agent, place / POLICY_FILE, accepted_function(options.function), idle_s)
    folder = options.out or Path("endpoints") / request.name
    files = endpoint_files(site, request.config, request.settings, endpoint, not options.no_files, offered)
    for name, text in files.items():
        write(folder / name, text)
    (folder / "endpoints.sh").chmod(EXECUTABLE)
    (folder / POLICY_FILE).chmod(OWNER_ONLY)
    say(f"Written to {folder} for {site.machine}. Follow {folder / 'CHECKLIST.md'}.")
    there = shlex.quote(str(place))
    say("Copy it to a file system that the compute nodes can write to, but not into the collection; for example:")
    say(f"  ssh HOST mkdir -p {there} && rsync -a {shlex.quote(str(folder))}/ HOST:{there}/")


def requested(options: argparse.Namespace) -> SetupRequest:
    """Return the machine and its settings: of the campaign, if one is given, changed by the command line."""
    settings: dict[str, Any] = {}
    name, config, offered = options.site, options.config, Offered()
    if options.campaign:
        campaign = read_yaml(options.campaign)
        sites = campaign.get("sites") or {}
        if name not in sites:
            problem = f"there is no site {name}" if name else "no --site NAME"
            raise UserMistake(f"{options.campaign}: {problem}", remedy=f"Its sites are {', '.join(sites)}")
        config = config or (sites[name] or {}).get("config") or name
        settings, offered = machine_settings(sites[name]), offered_by(campaign, sites[name] or {})
    if not config:
        raise UserMistake("name a machine, or --campaign FILE --site NAME", remedy="See --help")
    for text in options.sets:
        apply_set(settings, text)
    return SetupRequest(name or Path(config).stem, config, settings, offered)


def offered_by(campaign: Mapping[str, Any], entry: Mapping[str, Any]) -> Offered:
    """Return the records and the model that a campaign names for a site; what comes with the project, for all sites."""
    found = {}
    for key in ("data", "model"):
        common = str((campaign.get(key) or {}).get("source") or "")
        found[key] = entry.get(key) or (common if common and "/" not in common else None)
    return Offered(**found)


def accepted_function(given: UUID | None) -> str | None:
    """Return the id of the function that an endpoint is to accept, and say what to do where it is not known.

    It is registered here if there is a login; nobody is asked to log in.
    """
    from workflows.globus.compute.functions import login_function

    try:
        return login_function(str(given) if given else None)
    except CrossfedError as error:
        say(f"The endpoints accept no function yet: {error}")
        say("Log in and run this again, or write the function's UUID to allowed_functions in config.yaml.")
        return None


def made(request: SetupRequest) -> Site:
    """Return the site as a campaign resolves it once its endpoint has an id.

    Raises:
        UserMistake: a missing or invalid setting.
    """
    settings = {"endpoint": NO_ENDPOINT_YET, **request.settings, "route": "globus"}
    if "collection" not in settings and needs_collection(settings):
        settings["carrier"] = "copy"  # the guest collection is made during the setup
    try:
        return resolve_site(request.name, request.config, Path("runs").absolute() / "setup", settings)
    except SiteConfigError as error:
        problem = str(error).replace(f"--set sites.{request.name}.", "--set ")
        raise UserMistake(f"{request.config}: {problem}") from None


def refuse_shared_folders(site: Site, request: SetupRequest, folders: Mapping[str, Path]) -> None:
    """Refuse folders of the site's own that would lie in the collection, which is usually made later.

    Raises:
        UserMistake: one of them would.
    """
    settings, collection = request.settings, site.collection
    if not needs_collection(settings):
        return
    if "collection" not in settings or collection is None:
        collection = Collection(NO_ENDPOINT_YET, shared_folder(settings))
    for key, path in folders.items():
        refuse_shared(f"{request.config}: {key}", path, collection)


def duration(text: str) -> int:
    """Return the seconds of ``30m``; a bare number is seconds and must be 60 or more: ``3`` is meant in another unit.

    Raises:
        UserMistake: it is no duration, or a small number without a unit.
    """
    try:
        found_s = parse_duration(text)
    except ValueError:
        raise UserMistake(f"--idle {text}: not a duration such as 30m or 4h") from None
    if text.strip().isdigit() and found_s < SHORTEST_BARE_S:
        number = text.strip()
        raise UserMistake(f"--idle {text}: it has no unit", remedy=f"Write {number}s, {number}m or {number}h")
    return found_s


def write(path: Path, text: str) -> None:
    """Write a file into a folder that only its owner may read, as the agent requires it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, text)


if __name__ == "__main__":
    leave(main)

"""What a person does at a facility so that campaigns reach it through Globus, in order, with the very commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from site_configs.base import Site
from workflows.globus.template import Choices, user_endpoint_config

TRAINING, FILES = "train", "files"
AGENT_PACKAGE = "globus-compute-endpoint"
TORCH = "torch==2.13.0"


def checklist(site: Site, config: str, settings: Mapping[str, Any], choices: Choices, files: bool) -> str:
    """``CHECKLIST.md``.

    Args:
        site: the facility.
        config: the machine, as the campaign names it.
        settings: of the site in the campaign, as far as they are known.
        choices: what is not a fact of the site.
        files: whether there is an endpoint for files.
    """
    storage_root = Path(str(settings["storage_root"]))
    parts = (
        _title(site), _environments(site, choices), _agent(site, files), _collection(site, settings),
        _data(storage_root), _campaign(site, config, settings, files), _driver(settings), _later(files),
    )  # fmt: skip
    return "\n".join(line for part in parts for line in part) + "\n"


def _title(site: Site) -> Iterator[str]:
    yield from (
        f"# {site.machine}: what to do once for the route through Globus",
        "",
        "All of 1 to 3 is done on a login node of the facility, with this folder copied to a file system that the",
        "compute nodes can read and write (logs and job scripts go below it). Nothing here needs an administrator.",
        "",
    )


def _environments(site: Site, choices: Choices) -> Iterator[str]:
    assert site.python_env is not None
    env, agent = shlex.quote(str(site.python_env)), shlex.quote(str(choices.agent))
    yield from (
        "## 1. Two Python environments",
        "",
        f"The project's own and that of the agent: `{AGENT_PACKAGE}` and `transformers` want different versions of",
        "`click`, so they cannot share one. Both want Python 3.11 to 3.13; the project's wants the driver's version.",
        "",
        "In a copy of this project, of the same commit as the driver's:",
        "",
        "```bash",
        *(site.setup.splitlines() if site.setup else ()),
        f"python3 -m venv --system-site-packages {env}   # the modules' own torch stays visible",
        f'{env}/bin/python -c "import torch; print(torch.__version__, torch.cuda.is_available())" \\',
        f"  || {env}/bin/pip install {TORCH}",
        f"{env}/bin/pip install -c .ci/constraints.txt -e .   # leave out -c where torch is the facility's",
        f"python3 -m venv {agent}",
        f"{agent}/bin/pip install {AGENT_PACKAGE}=={_agent_version()}",
        "```",
        "",
    )


def _agent_version() -> str:
    """That of the SDK in use: both are released together."""
    try:
        return version("globus-compute-sdk")
    except PackageNotFoundError:
        return "4.19.0"


def _agent(site: Site, files: bool) -> Iterator[str]:
    names = f"`{TRAINING}` (its batch jobs train)" + (f" and `{FILES}` (one worker on the login node)" if files else "")
    yield from (
        "## 2. The agent",
        "",
        f"This folder holds the configuration of the endpoint {names}." if not files else
        f"This folder holds the configuration of two endpoints: {names}.",
        "It obeys the identity that starts it, and nobody else: use the identity of the driver.",
        "",
        "```bash",
        "chmod 700 . && ./endpoints.sh login   # a person: shows an address, asks for the code",
        "# or, for a service account, instead of the login:",
        "umask 077; cat > account.env   # two lines: GLOBUS_COMPUTE_CLIENT_ID=... GLOBUS_COMPUTE_CLIENT_SECRET=...",
        "./endpoints.sh start",
        "./endpoints.sh status                 # shows the UUIDs",
        "```",
        "",
        "It goes on when you log out, and starts again by itself when it dies. After a reboot of the login node: the",
        "same `./endpoints.sh start`. Where processes on login nodes are ended, use the facility's node for that.",
        "",
    )  # fmt: skip


def _collection(site: Site, settings: Mapping[str, Any]) -> Iterator[str]:
    if not carried(settings):
        return
    storage_root = Path(str(settings["storage_root"]))
    base = f"collection {site.collection.id}" if site.collection else "the facility's collection"
    yield from (
        "## 3. A guest collection for the project folder",
        "",
        "It needs no consent for each campaign and no login each hour, which the facility's own collection may.",
        "",
        f"1. `mkdir -p {shlex.quote(str(storage_root))}`",
        f"2. <https://app.globus.org/file-manager>: open {base}, go to `{storage_root}`,",
        "   *Share* > *Add a Guest Collection*.",
        "3. *Permissions* > *Add Permissions*: path `/`, read and write, for the identity of the driver"
        " (a person, or a service account: `ID@clients.auth.globus.org`).",
        "4. Note the UUID of the guest collection.",
        "",
    )


def records_folder(storage_root: Path) -> Path:
    """Where the records may lie: beside the folder that the collection shows, not in it."""
    return storage_root.parent / f"{storage_root.name}-records"


def _data(storage_root: Path) -> Iterator[str]:
    yield from (
        "## 4. Data and model",
        "",
        f"Put the site's records where its compute nodes read them, for example `{records_folder(storage_root)}`: they",
        "never leave the site. Not below the folder of the collection, where the driver's identity could read them.",
        "A model that is not shipped with a package goes to a folder as well (compute nodes may have no network); name",
        "it in the campaign as `model`, beside `data`.",
        "",
    )


def _campaign(site: Site, config: str, settings: Mapping[str, Any], files: bool) -> Iterator[str]:
    storage_root = Path(str(settings["storage_root"]))
    entry: dict[str, Any] = {"config": config, "route": "globus", "endpoint": "UUID of endpoint train"}
    entry |= {"files_endpoint": "UUID of endpoint files"} if files else {}
    if carried(settings):
        entry |= {"collection": "UUID of the guest collection", "collection_folder": str(storage_root)}
    entry["data"] = str(records_folder(storage_root))
    entry |= {key: value for key, value in settings.items() if value is not None}
    text = yaml.safe_dump({"sites": {site.name: entry}}, sort_keys=False)
    yield from ("## 5. The campaign", "", "Into the campaign's file:", "", "```yaml", *text.splitlines(), "```", "")
    if sent := user_endpoint_config(site):
        told = ", ".join(f"{key} {value}" for key, value in sent.items())
        yield f"With each task it sends what these settings make of the block: {told}."
        yield ""


def carried(settings: Mapping[str, Any]) -> bool:
    """Whether artifacts go through a collection."""
    return settings.get("carrier") in (None, "globus")


def _driver(settings: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## 6. The driver's machine", "")
    if carried(settings):
        yield from (
            "It needs a collection too, that shows the run directory: Globus Connect Personal is enough. Under",
            "`globus:` of the campaign, `collection` is its UUID and `folder` what it shows as `/`.",
            "",
        )
    yield from (
        "```bash",
        "python workflows/login.py --campaign CAMPAIGN.yaml        # a person, once",
        "python workflows/login.py --campaign CAMPAIGN.yaml --status",
        "python workflows/fl_round.py CAMPAIGN.yaml --check --live",
        "```",
        "",
    )


def _later(files: bool) -> Iterator[str]:
    yield from (
        "## Later",
        "",
        "* An idle block is given back by itself; see `idle_s` at the head of `train/user_config_template.yaml.j2`.",
        "* Changed files of `train` and `files` hold for the next child of the agent: at the latest after"
        " `./endpoints.sh stop` and `start`.",
        f"* To end it for good: `./endpoints.sh stop`, and `globus-compute-endpoint delete {TRAINING}`"
        + (f" and `{FILES}`." if files else "."),
        "",
    )

"""What a person does at a facility so that campaigns reach it through Globus, in order, with the very commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from site_configs.library.site import Site
from workflows.globus.setup.template import EndpointOptions, user_endpoint_config

TRAINING, FILES = "train", "files"
AGENT_PACKAGE = "globus-compute-endpoint"
LEAST_TORCH, TORCH_BEFORE = "2.13", "3"  # as pyproject.toml asks for it
# version strings alone: a login node has no devices to ask about
TORCH_FACTS = (
    "import torch; v = torch.version;"
    " print(torch.__version__, 'cuda', v.cuda, 'hip', v.hip, 'xpu', getattr(v, 'xpu', None))"
)
DESCRIBED_BY_ITS_USER = ("local", "pbs", "slurm")
HOUR_S = 3600
REMARKS = {
    "data": "optional; left out: data.source of the campaign (the embedded data)",
    "model": "optional; left out: model.source of the campaign",
    "tasks": "optional; left out: what no other site names is dealt out",
}


def checklist(site: Site, config: str, settings: Mapping[str, Any], choices: EndpointOptions, files: bool) -> str:
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
        _title(site, storage_root),
        _environments(site, config, choices),
        _agent(site, files),
        _collection(site, settings),
        _data(storage_root),
        _campaign(site, config, settings, files),
        _driver(settings),
        _later(files),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def endpoints_folder(storage_root: Path, name: str) -> Path:
    """Where the endpoints of a site may lie: written to by compute nodes, one for each site, not in the collection."""
    return storage_root.parent / "crossfed-endpoints" / name


def _title(site: Site, storage_root: Path) -> Iterator[str]:
    folder = endpoints_folder(storage_root, site.name)
    yield from (
        f"# {site.machine}: what to do once for the route through Globus",
        "",
        "All of 1 to 3 is done on a login node of the facility, with this folder copied to a file system that the",
        f"compute nodes can read and write (logs and job scripts go below it), for example `{folder}`.",
        "Not into the folder of the collection: the agent keeps its tokens here. None of this needs an administrator.",
        "",
    )


def torch_build(site: Site, config: str) -> tuple[str, str]:
    """The build of torch for a site's devices, in words, and the words of ``TORCH_FACTS`` that tell it."""
    variable = site.node.device_variable if site.node else ""
    if site.device == "cpu":
        return "any build will do (the CPU build is the smallest)", "any"
    if site.device == "xpu":
        return "the XPU build", "`xpu`"
    if variable.startswith(("ROCR_", "HIP_")):
        return "the ROCm build", "`hip`"
    if config in DESCRIBED_BY_ITS_USER or config.endswith(".py"):
        return "the CUDA build, or the ROCm build where the devices are AMD's", "`cuda` (ROCm: `hip`)"
    return "the CUDA build", "`cuda`"


def _environments(site: Site, config: str, choices: EndpointOptions) -> Iterator[str]:
    assert site.python_env is not None
    env, agent = shlex.quote(str(site.python_env)), shlex.quote(str(choices.agent))
    yield from (
        "## 1. Two Python environments",
        "",
        f"The project's own and that of the agent: `{AGENT_PACKAGE}` and `transformers` want different versions of",
        "`click`, so they cannot share one. Both want Python 3.11 to 3.13. The project's should have the minor version",
        "of the driver's (3.11 with 3.11), and gets the same versions of packages from `.ci/constraints.txt`; the",
        "agent's need not match anything.",
        "",
        "Get a copy of this project with git, at the driver's commit: `git -C PROJECT rev-parse HEAD` on the driver's",
        "machine tells it, `git checkout COMMIT` here takes it. In that copy:",
        "",
        "```bash",
        *(site.setup.splitlines() if site.setup else ()),
        f"python3 -m venv --system-site-packages {env}   # the modules' own torch stays visible",
        f'show_torch() {{ {env}/bin/python -c "{TORCH_FACTS}"; }}',
        "show_torch",
        "```",
        "",
        *_torch(site, config, env),
        "```bash",
        f"{env}/bin/pip install -c .ci/constraints.txt -e .",
        "show_torch   # the same line as before",
        "```",
        "",
        "If that line has changed, pip has put another torch in the place of yours: install the right build again, and",
        "the line above once more.",
        "",
        "The agent's:",
        "",
        "```bash",
        f"python3 -m venv {agent}",
        f"{agent}/bin/pip install {AGENT_PACKAGE}=={_agent_version()}",
        "```",
        "",
    )


def _torch(site: Site, config: str, env: str) -> Iterator[str]:
    """What the environment must show before pip is let loose on it."""
    build, shown = torch_build(site, config)
    told = "which of the three is not `None` does not matter" if shown == "any" else f"{shown} is not `None`"
    yield from (
        f"The environment must have torch {LEAST_TORCH} or later (below {TORCH_BEFORE}), and the build for the devices",
        f"of this machine: {build}. The line shows it: the version, and {told}.",
        "That holds on login nodes too. A pre-release (`a0`) of a version counts as older than it.",
        "",
        "If there is no torch, an older one or another build: install the right build first, or the next command",
        "brings PyPI's, which is a CUDA build. The facility's guide says where it has one; else take the command of",
        "<https://pytorch.org/get-started/locally/> (PyTorch has a wheel index for each of CUDA, ROCm, XPU and CPU),",
        f"with `{env}/bin/pip` for `pip3` and `--force-reinstall 'torch>={LEAST_TORCH},<{TORCH_BEFORE}'`",
        "for its packages: pip would otherwise keep the torch that it sees. Go on when this shows the right one:",
        "",
        "```bash",
        "show_torch",
        "```",
        "",
        "Then the project:",
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
        f"This folder holds the configuration of the endpoint {names}."
        if not files
        else f"This folder holds the configuration of two endpoints: {names}.",
        "It obeys the identity that starts it, and nobody else: use the identity of the driver.",
        "",
        "In this folder, as one of the two, A or B. A, a person:",
        "",
        "```bash",
        "chmod 700 .",
        "./endpoints.sh login   # shows an address, asks for the code",
        "```",
        "",
        "B, a service account: no login; put its own two values in the place of `ID` and `SECRET`:",
        "",
        "```bash",
        "chmod 700 .",
        "(umask 077; cat > account.env <<'END'",
        "GLOBUS_COMPUTE_CLIENT_ID=ID",
        "GLOBUS_COMPUTE_CLIENT_SECRET=SECRET",
        "END",
        ")",
        "```",
        "",
        "Then, for both:",
        "",
        "```bash",
        "./endpoints.sh start",
        "./endpoints.sh status                 # shows the UUIDs",
        "```",
        "",
        "It goes on when you log out, and starts again by itself when it dies. After a reboot of the login node: the",
        "same `./endpoints.sh start`. Where processes on login nodes are ended, use the facility's node for that.",
        "",
    )


def _collection(site: Site, settings: Mapping[str, Any]) -> Iterator[str]:
    if not needs_collection(settings):
        return
    storage_root = Path(str(settings["storage_root"]))
    base = f"collection {site.collection.id}" if site.collection else "the facility's collection"
    yield from (
        "## 3. A guest collection for the project folder",
        "",
        "Once it is there, a guest collection asks for nothing more. The facility's own collection asks for a consent,",
        "and may ask for a new login while a campaign runs. A service account can usually use a",
        "guest collection only.",
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
        "A model that is not shipped with a package goes to a folder as well (compute nodes may have no network). The",
        "campaign names both, as `data` and `model`; without them the site takes what the campaign says for all.",
        "",
    )


def _campaign(site: Site, config: str, settings: Mapping[str, Any], files: bool) -> Iterator[str]:
    storage_root = Path(str(settings["storage_root"]))
    entry: dict[str, Any] = {"config": config, "route": "globus", "endpoint": "UUID of endpoint train"}
    entry |= {"files_endpoint": "UUID of endpoint files"} if files else {}
    if needs_collection(settings):
        entry |= {"collection": "UUID of the guest collection", "collection_folder": str(storage_root)}
    entry["data"] = str(records_folder(storage_root))
    entry |= {key: value for key, value in settings.items() if value is not None}
    text = yaml.safe_dump({"sites": {site.name: entry}}, sort_keys=False, width=1000)
    snippet = [f"{line}   # {REMARKS['data']}" if line.startswith("    data:") else line for line in text.splitlines()]
    snippet += [f"    # {key}   # {REMARKS[key.split(':')[0]]}" for key in ("model: FOLDER", "tasks: [FAMILY]")]
    yield from ("## 5. The campaign", "", "Into the campaign's file:", "", "```yaml", *snippet, "```", "")
    yield from _admitted(site)


def _admitted(site: Site) -> Iterator[str]:
    """What a campaign sends, and how much of it the endpoint takes."""
    if not (sent := user_endpoint_config(site)):
        return
    assert site.block is not None
    most, hours = site.block.queue.max_nodes, f"{site.block.walltime_s / HOUR_S:.4g} h"
    told = ", ".join(f"{key} {value}" + (f" ({hours})" if key == "walltime_s" else "") for key, value in sent.items())
    yield from (
        f"With each task it sends what these settings make of the block: {told}.",
        f"The endpoint admits at most {most} {'node' if most == 1 else 'nodes'}, as many as `{site.block.queue.name}`"
        " takes. For more, run `setup_site.py` again with",
        "these settings and copy the folder anew.",
        "",
    )


def needs_collection(settings: Mapping[str, Any]) -> bool:
    """Whether artifacts go through a collection."""
    return settings.get("carrier") in (None, "globus")


def _driver(settings: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## 6. The driver's machine", "")
    if needs_collection(settings):
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

"""The checklist of what a person does at a facility so that campaigns reach it through Globus, with the commands."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from apps.base.versions import LOWEST
from site_configs.library.globus_settings import exchange_beside
from site_configs.library.site import IN, OUT, Site
from workflows.globus.remedies import LOGIN
from workflows.globus.setup.render import render
from workflows.globus.setup.template import EndpointOptions, endpoints_folder, own_template_values, records_folder

TRAINING, FILES = "train", "files"
LEAST_TORCH, TORCH_BEFORE = LOWEST["torch"], "3"  # as in pyproject.toml; a test compares
# version strings alone: a login node has no devices to ask about
TORCH_FACTS = (
    "import torch; v = torch.version;"
    " print(torch.__version__, 'cuda', v.cuda, 'hip', v.hip, 'xpu', getattr(v, 'xpu', None))"
)
GENERIC_MACHINES = ("local", "pbs", "slurm")  # described by their users
HOUR_S = 3600


def checklist(site: Site, config: str, settings: Mapping[str, Any], options: EndpointOptions, with_files: bool) -> str:
    """Return ``CHECKLIST.md``.

    Args:
        site: the facility.
        config: the machine, as the campaign names it.
        settings: of the site in the campaign, as far as they are known.
        options: of its endpoint.
        with_files: True if there is an endpoint for files.
    """
    storage_root = Path(str(settings["storage_root"]))
    build, shown = torch_build(site, config)
    return render(
        "checklist.md.j2",
        site=site,
        folder=endpoints_folder(storage_root, site.name),
        storage_root=storage_root,
        exchange=shared_folder(settings),
        incoming=IN,
        outgoing=OUT,
        records=records_folder(storage_root),
        agent=options.agent,
        policy=options.policy,
        function=options.function,
        agent_package="globus-compute-endpoint",
        agent_version=version("globus-compute-sdk"),  # both are released together
        least_torch=LEAST_TORCH,
        torch_before=TORCH_BEFORE,
        torch_facts=TORCH_FACTS,
        torch_build=build,
        torch_shown=shown,
        training_endpoint=TRAINING,
        files_endpoint=FILES,
        files=with_files,
        needs_collection=needs_collection(settings),
        snippet=_site_entry(site, config, settings, with_files),
        sent=_sent_text(site),
        max_nodes=site.block.queue.max_nodes if site.block else 0,
        login=LOGIN,
    )


def shared_folder(settings: Mapping[str, Any]) -> Path:
    """Return the folder that the collection shows: beside the storage root, which is private."""
    folder = settings.get("collection_folder")
    return Path(str(folder)) if folder else exchange_beside(Path(str(settings["storage_root"])))


def needs_collection(settings: Mapping[str, Any]) -> bool:
    """Return True if artifacts go through a collection."""
    return settings.get("carrier") in (None, "globus")


def torch_build(site: Site, config: str) -> tuple[str, str]:
    """Return the build of torch for a site's devices, and how the output of ``TORCH_FACTS`` shows it."""
    variable = site.node.device_variable if site.node else ""
    if site.device == "cpu":
        return "any build works (the CPU build is the smallest)", "which of the three is not `None` does not matter"
    if site.device == "xpu":
        return "the XPU build", "`xpu` is not `None`"
    if variable.startswith(("ROCR_", "HIP_")):
        return "the ROCm build", "`hip` is not `None`"
    if config in GENERIC_MACHINES or config.endswith(".py"):
        return "the CUDA build, or the ROCm build for AMD devices", "`cuda` (ROCm: `hip`) is not `None`"
    return "the CUDA build", "`cuda` is not `None`"


def _site_entry(site: Site, config: str, settings: Mapping[str, Any], with_files: bool) -> str:
    """Return the site's entry for the campaign file."""
    storage_root, shared = Path(str(settings["storage_root"])), str(shared_folder(settings))
    entry: dict[str, Any] = {"config": config, "route": "globus", "endpoint": f"UUID of endpoint {TRAINING}"}
    entry |= {"files_endpoint": f"UUID of endpoint {FILES}"} if with_files else {}
    if needs_collection(settings):
        entry |= {"collection": "UUID of the guest collection", "collection_folder": shared}
    entry["data"] = str(records_folder(storage_root))
    entry |= {key: value for key, value in settings.items() if value is not None}
    remark = "optional; default: data.source of the campaign (the embedded data)"
    lines = yaml.safe_dump({"sites": {site.name: entry}}, sort_keys=False, width=1000).splitlines()
    return "\n".join(f"{line}   # {remark}" if line.startswith("    data:") else line for line in lines)


def _sent_text(site: Site) -> str:
    """Return the values that a campaign sends with each task; "" if it sends none."""
    sent = own_template_values(site)
    hours = f" ({site.block.walltime_s / HOUR_S:.4g} h)" if site.block else ""
    return ", ".join(f"{key} {value}" + (hours if key == "walltime_s" else "") for key, value in sent.items())

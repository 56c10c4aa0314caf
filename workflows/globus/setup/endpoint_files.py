"""All files that set up a site's endpoints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from apps.trust.policy_file import NAME as POLICY_FILE
from site_configs.library.site import Site
from workflows.globus.setup.checklist import FILES, TRAINING, checklist
from workflows.globus.setup.policy import Offered, policy_text
from workflows.globus.setup.render import render
from workflows.globus.setup.template import (
    HEARTBEAT_S,
    EndpointOptions,
    core_config,
    environment_file,
    files_template,
    schema,
    training_template,
)


def endpoint_files(
    site: Site,
    config: str,
    settings: Mapping[str, Any],
    options: EndpointOptions,
    with_files: bool,
    offered: Offered,
) -> dict[str, str]:
    """Return the content of all files by their names in the folder.

    Args:
        site: the facility.
        config: the machine, as the campaign names it.
        settings: of the site in the campaign, as far as they are known.
        options: of its endpoint.
        with_files: True to add an endpoint for files.
        offered: records, models and driver of the site, as far as they are known.
    """
    found = {
        "CHECKLIST.md": checklist(site, config, settings, options, with_files),
        POLICY_FILE: policy_text(site, settings, offered),
        "endpoints.sh": _start_script(options, [TRAINING, FILES] if with_files else [TRAINING]),
        **_endpoint(TRAINING, f"crossfed {site.name}", training_template(site, options), site, options.function),
    }
    if with_files:
        found |= _endpoint(FILES, f"crossfed {site.name} files", files_template(site, options), None, options.function)
    if site.block and site.block.command_environment:
        found[f"{TRAINING}/user_environment.yaml"] = environment_file(site.block.command_environment)
    return found


def _endpoint(folder: str, display_name: str, template: str, site: Site | None, function: str | None) -> dict[str, str]:
    return {
        f"{folder}/config.yaml": core_config(display_name, function),
        f"{folder}/user_config_template.yaml.j2": template,
        f"{folder}/user_config_schema.json": json.dumps(schema(site), indent=2) + "\n",
    }


def _start_script(options: EndpointOptions, endpoints: Sequence[str]) -> str:
    """Return ``endpoints.sh``, which starts the agents and restarts them."""
    return render(
        "endpoints.sh.j2",
        agent_bin=shlex.quote(str(options.agent / "bin")),
        endpoints=endpoints,
        pause_s=3 * HEARTBEAT_S + HEARTBEAT_S // 2,
    )

"""The configuration of a site's Globus Compute endpoint, from the facts that the batch route uses.

An agent (``globus-compute-endpoint`` 4.10 and later) renders ``user_config_template.yaml.j2`` with the values that the
driver submits, checked by ``user_config_schema.json``, and starts a child endpoint with it; the child asks the
scheduler for blocks. The keys of the configuration are those of Globus Compute's reference and of Parsl's providers.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apps.base.errors import UserMistake
from apps.base.processes import PRIVATE_UMASK
from apps.training.deadline import BLOCK_END_VARIABLE
from apps.trust.policy_file import ACCOUNT_POLICY, POLICY_VARIABLE
from apps.trust.policy_file import NAME as POLICY_FILE
from site_configs.library.facility_endpoints import FACILITY_ENDPOINTS, alcf_values
from site_configs.library.site import Block, Endpoint, Site
from workflows.globus.compute.bootstrap import PYTHON as PYTHON_VARIABLE
from workflows.globus.setup.render import render
from workflows.planning.labels import LONGEST_DRAIN_S

HEARTBEAT_S = 30
# the only forms of what is sent to an endpoint: the text of a function, and JSON
SERIALIZERS = ("globus_compute_sdk.serialize.PureSourceTextInspect", "globus_compute_sdk.serialize.JSONData")
SPARE_S = 600  # a child that keeps no block outlives its last task by this: starting another takes half a minute
FILES_LIMIT_S = 2 * 3600  # for one task of the endpoint for files
PILOT_IDLE_S = 4 * 3600  # a pilot is kept so long for a driver that may come back, or never does
ROUND_IDLE_S = 60
COMMAND_TIMEOUT_S = 60
SHORTEST_S, LONGEST_S = 60, 31 * 24 * 3600
# a value becomes part of a line of a batch script: no character that could end it
VALUE_PATTERN = r"^[A-Za-z0-9_.@:+-]{1,64}$"
OPTION = re.compile(r"^#SBATCH --(account|partition|qos)=(.*)$")


@dataclass(frozen=True)
class EndpointOptions:
    """Settings of an endpoint beside those of its site.

    Attributes:
        agent: folder, at the site, of the environment with ``globus-compute-endpoint``.
        policy: path, at the site, of the policy that its workers keep to.
        function: id of the only function that it accepts; None: it accepts none yet.
        idle_s: a block without work is given back after so long; None: by the site's ``blocks`` setting.
    """

    agent: Path
    policy: Path
    function: str | None = None
    idle_s: int | None = None


def default_agent(python_env: Path) -> Path:
    """Return the default folder of the agent's own environment."""
    return python_env.parent / "globus-agent"


def endpoints_folder(storage_root: Path, name: str) -> Path:
    """Return a folder for a site's endpoints and its policy: writable for compute nodes, and not in the collection."""
    return storage_root.parent / "crossfed-endpoints" / name


def records_folder(storage_root: Path) -> Path:
    """Return a folder for the site's records: beside the folder that the collection shows, not in it."""
    return storage_root.parent / f"{storage_root.name}-records"


def default_policy(site: Site) -> Path:
    """Return the path of a site's policy if its files were copied to where the checklist proposes."""
    root = site.storage_root
    project = root.parents[1] if root.name == site.name and len(root.parts) > 3 else root  # without RUN/SITE
    return endpoints_folder(project, site.name) / POLICY_FILE


def user_endpoint_config(site: Site) -> dict[str, Any]:
    """Return the values that a campaign sends with each task, so that the block has the campaign's settings.

    The same values give the same child endpoint: they must not change while a campaign runs.
    """
    facility = FACILITY_ENDPOINTS.get(site.endpoint.template) if site.endpoint else None
    if facility is None or site.block is None:
        return own_template_values(site)
    provider: Any = site.provider("")
    return alcf_values(
        site.block,
        **submission_options(site),
        select=provider.select_options.removeprefix(":"),
        directives=_scheduler_options("PBSProProvider", provider),
        worker_init=[*facility.worker_init, _block_end_line(site.block), *_site_lines(site)],
    )


def _block_end_line(block: Block) -> str:
    return f"export {BLOCK_END_VARIABLE}=$(($(date +%s) + {block.walltime_s}))"


def _site_lines(site: Site) -> list[str]:
    """Return a site's shell lines for an endpoint of its facility, which knows no policy: the account's own counts."""
    assert site.python_env is not None  # resolved sites have one
    values = {**site.environment, "HF_HUB_DISABLE_TELEMETRY": "1", PYTHON_VARIABLE: _interpreter(site)}
    return [
        *site.setup.splitlines(),
        f"umask {PRIVATE_UMASK:03o}",
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        f'export {POLICY_VARIABLE}="$HOME/{ACCOUNT_POLICY}"',
        f"export PATH={shlex.quote(str(site.python_env / 'bin'))}:$PATH",
    ]


def own_template_values(site: Site) -> dict[str, Any]:
    """Return the values for the template that ``training_template`` writes."""
    if site.block is None:
        return {}
    named = {key: value for key, value in submission_options(site).items() if value}
    return {**named, "nodes": site.block.nodes, "walltime_s": site.block.walltime_s}


def submission_options(site: Site) -> dict[str, str]:
    """Return account and queue of a block under the scheduler's names; an empty value is the cluster's default."""
    assert site.block is not None
    provider: Any = site.provider("")
    if site.block.scheduler == "pbs":
        return {"account": provider.account or "", "queue": provider.queue or ""}
    return {"account": "", "partition": "", "qos": ""} | dict(_split_options(provider.scheduler_options)[1])


def _split_options(lines: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Split the head of a Slurm script into fixed lines and the options that a campaign may set."""
    fixed, options = [], []
    for line in filter(None, lines.splitlines()):
        found = OPTION.match(line)
        if found:
            options.append((found[1], found[2]))
        else:
            fixed.append(line)
    return fixed, options


def training_template(site: Site, options: EndpointOptions) -> str:
    """Return ``user_config_template.yaml.j2`` of the endpoint whose blocks train.

    Raises:
        UserMistake: the machine has a provider of an unknown kind.
    """
    provider: Any = site.provider("")
    kind = _provider_kind(site, provider)
    return render(
        "train_endpoint.yaml.j2",
        site=site,
        defaults=_defaults(site, options),
        heartbeat_s=HEARTBEAT_S,
        spare_s=SPARE_S,
        hard_heartbeats=(round(Endpoint("").queue_s) + LONGEST_S) // HEARTBEAT_S,
        longest_drain_s=LONGEST_DRAIN_S,
        kind=kind,
        provider=provider,
        scheduler_options=_scheduler_options(kind, provider),
        command_timeout_s=COMMAND_TIMEOUT_S,
        block_end=BLOCK_END_VARIABLE,
        serializers=SERIALIZERS,
        worker_init="\n".join(worker_init_lines(site, options)),
    )


def _provider_kind(site: Site, provider: Any) -> str:
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    for kind in (LocalProvider, PBSProProvider, SlurmProvider):
        if isinstance(provider, kind):
            return kind.__name__
    raise UserMistake(
        f"sites.{site.name}: an endpoint can be set up for PBS, Slurm and single machines,"
        f" not for {type(provider).__name__}"
    )


def _defaults(site: Site, options: EndpointOptions) -> dict[str, Any]:
    """Return the template's values for tasks that bring none of their own."""
    usual_s = ROUND_IDLE_S if site.block and site.block.reuse == "per_round" else PILOT_IDLE_S
    idle_s = usual_s if options.idle_s is None else options.idle_s
    if site.block is None:
        return {"idle_s": idle_s}
    texts = submission_options(site).items()
    named = {key: json.dumps(json.dumps(value) if value else "null") for key, value in texts}
    return {**named, "nodes": site.block.nodes, "walltime_s": site.block.walltime_s, "idle_s": idle_s}


def _scheduler_options(kind: str, provider: Any) -> list[str]:
    """Return the lines of a batch script's head, the same as in the batch route's scripts."""
    if kind == "PBSProProvider":
        return [line for line in provider.scheduler_options.splitlines() if line]
    if kind == "SlurmProvider":
        tasks = f"#SBATCH --ntasks-per-node={provider.tasks_per_node}"  # after Parsl's own line, which asks for one
        return [tasks, *_split_options(provider.scheduler_options)[0]]
    return []


def worker_init_lines(site: Site, options: EndpointOptions) -> list[str]:
    """Return the shell lines before the workers start; none may need the network.

    Interpreter and policy come last: nothing that a request can name changes them.
    """
    assert site.python_env is not None  # resolved sites have one
    values = {
        **site.environment,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        PYTHON_VARIABLE: _interpreter(site),
        POLICY_VARIABLE: str(options.policy),
    }
    return [
        "unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET  # of the agent's account, no business of a job",
        *site.setup.splitlines(),
        f"umask {PRIVATE_UMASK:03o}",
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        _path_line(site, options),
    ]


def _interpreter(site: Site) -> str:
    assert site.python_env is not None  # resolved sites have one
    return str(site.python_env / "bin" / "python")


def _path_line(site: Site, options: EndpointOptions) -> str:
    assert site.python_env is not None  # resolved sites have one
    programs = ":".join(shlex.quote(str(folder / "bin")) for folder in (site.python_env, options.agent))
    return f"export PATH={programs}:$PATH"


def files_template(site: Site, options: EndpointOptions) -> str:
    """Return the template of the endpoint on a login node: one worker, which reads files and ends when idle."""
    return render(
        "files_endpoint.yaml.j2",
        site=site,
        heartbeat_s=HEARTBEAT_S,
        spare_s=SPARE_S,
        hard_heartbeats=FILES_LIMIT_S // HEARTBEAT_S,
        worker_init="\n".join(worker_init_lines(site, options)),
        serializers=SERIALIZERS,
    )


def schema(site: Site | None) -> dict[str, Any]:
    """Return ``user_config_schema.json``: the values that a task may bring; None: it may bring none."""
    texts = submission_options(site) if site and site.block else {}
    values: dict[str, Any] = {key: {"type": "string", "pattern": VALUE_PATTERN} for key in texts}
    if site:
        values["idle_s"] = {"type": "integer", "minimum": 0, "maximum": LONGEST_S}
    if site and site.block:
        values["nodes"] = {"type": "integer", "minimum": 1, "maximum": site.block.queue.max_nodes}
        values["walltime_s"] = {"type": "integer", "minimum": SHORTEST_S, "maximum": LONGEST_S}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": values,
        "additionalProperties": False,
    }


def core_config(display_name: str, function: str | None) -> str:
    """Return ``config.yaml`` of an agent; it must name no engine, or the agent does not start.

    Args:
        display_name: for people.
        function: id of the only function that it accepts; None: it accepts none.
    """
    settings = {
        "display_name": display_name,
        "amqp_port": 443,  # open where a firewall allows any outgoing connection
        "heartbeat_period": HEARTBEAT_S,
        "debug": False,  # with True the log holds every task in full
        "allowed_functions": [function] if function else [],  # without this key it would accept any
    }
    return yaml.safe_dump(settings, sort_keys=False)


def environment_file(variables: Mapping[str, str]) -> str:
    """Return ``user_environment.yaml``: variables for the scheduler's commands."""
    return yaml.safe_dump(dict(variables), sort_keys=False)

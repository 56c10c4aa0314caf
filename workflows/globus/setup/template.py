"""The configuration of a site's Globus Compute endpoint, from the facts that the batch route uses.

An agent (``globus-compute-endpoint`` 4.10 and later) renders ``user_config_template.yaml.j2`` with what the driver
submits, checked by ``user_config_schema.json``, and starts a child with it; the child asks the scheduler for blocks.
The words of the configuration are those of Globus Compute's reference and of Parsl's providers.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apps.base.errors import UserMistake
from apps.training.deadline import BLOCK_END_VARIABLE
from site_configs.library.site import Endpoint, Site
from workflows.planning.labels import LONGEST_DRAIN_S

HEARTBEAT_S = 30
SPARE_S = 600  # a child that keeps no block outlives its last task by this: to start another takes half a minute
PILOT_IDLE_S = 4 * 3600  # no driver may ever come back to a pilot; so long it is kept for one that does
ROUND_IDLE_S = 60
COMMAND_TIMEOUT_S = 60
SHORTEST_S, LONGEST_S = 60, 31 * 24 * 3600
# a value goes into a line of a batch script: nothing that could end it
VALUE_PATTERN = r"^[A-Za-z0-9_.@:+-]{1,64}$"
PICKED = re.compile(r"^#SBATCH --(account|partition|qos)=(.*)$")


@dataclass(frozen=True)
class EndpointOptions:
    """What is not a fact of the site.

    Attributes:
        agent: folder, at the site, of the environment with ``globus-compute-endpoint``.
        idle_s: a block without work is given back after it; None: what suits ``blocks``.
    """

    agent: Path
    idle_s: int | None = None


def default_agent(python_env: Path) -> Path:
    """Where an agent's own environment is made if nobody says otherwise."""
    return python_env.parent / "globus-agent"


def user_endpoint_config(site: Site) -> dict[str, Any]:
    """What a campaign sends with each task, so that the block is the one of its own settings.

    The same values give the same child endpoint: they must not change while a campaign runs.
    """
    if site.block is None:
        return {}
    named = {key: value for key, value in submission(site).items() if value}
    return {**named, "nodes": site.block.nodes, "walltime_s": site.block.walltime_s}


def submission(site: Site) -> dict[str, str]:
    """Whom a block is charged to and where it queues, in the words of the scheduler; empty: the cluster's own."""
    assert site.block is not None
    provider: Any = site.provider("")
    if site.block.scheduler == "pbs":
        return {"account": provider.account or "", "queue": provider.queue or ""}
    return {"account": "", "partition": "", "qos": ""} | dict(_options(provider.scheduler_options)[1])


def _options(lines: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines of a Slurm script's head, and apart from them what a campaign may choose."""
    kept, chosen = [], []
    for line in filter(None, lines.splitlines()):
        found = PICKED.match(line)
        if found:
            chosen.append((found[1], found[2]))
        else:
            kept.append(line)
    return kept, chosen


def training_template(site: Site, choices: EndpointOptions) -> str:
    """``user_config_template.yaml.j2`` of the endpoint whose blocks train.

    Raises:
        UserMistake: the machine has a provider of a kind that is not known here.
    """
    provider = "\n".join(_provider(site, choices))
    usual_s = ROUND_IDLE_S if site.block and site.block.reuse == "per_round" else PILOT_IDLE_S
    idle_s = usual_s if choices.idle_s is None else choices.idle_s
    queue_s = round(Endpoint("").queue_s)
    drain = (
        []
        if site.block is None
        else [
            f"  # takes no new task when there is hardly any time left\n"
            f"  drain_period: {{{{ walltime_s - [{LONGEST_DRAIN_S}, walltime_s // 10] | min }}}}"
        ]
    )
    lines = [
        f"{{#- crossfed: blocks of {site.machine} for training. A task may bring its own values of these. #}}",
        *_defaults(site, idle_s),
        f"heartbeat_period: {HEARTBEAT_S}",
        "# a child without work ends, and its block with it; one with a task in a queue or at work lives on",
        f"idle_heartbeats_soft: {{{{ (idle_s + {SPARE_S}) // {HEARTBEAT_S} }}}}",
        f"idle_heartbeats_hard: {(queue_s + LONGEST_S) // HEARTBEAT_S}",
        "engine:",
        "  type: GlobusComputeEngine",
        f"  label: {_quoted(f'cf-{site.name}')}",
        *_address(site),
        "  max_workers_per_node: 1",
        "  max_retries_on_system_failure: 0  # the driver asks again, and counts",
        "  encrypted: true",
        f"  heartbeat_period: {site.heartbeat_s}",
        f"  heartbeat_threshold: {2 * site.heartbeat_s}",
        *drain,
        "  job_status_kwargs:",
        '    strategy: "simple"',
        "    strategy_period: 5",
        "    max_idletime: {{ idle_s }}",
        provider,
    ]
    return "\n".join(lines) + "\n"


def _defaults(site: Site, idle_s: int) -> Iterator[str]:
    """What holds where a task brings no value of its own."""
    numbers = {"idle_s": idle_s}
    if site.block:
        numbers = {"nodes": site.block.nodes, "walltime_s": site.block.walltime_s, **numbers}
        for key, value in submission(site).items():
            text = json.dumps(_quoted(value) if value else "null")
            yield f"{{%- set {key} = {key} | default({text}) %}}"
    for key, number in numbers.items():
        yield f"{{%- set {key} = {key} | default({number}) %}}"
    if site.block:  # Slurm counts in minutes
        seconds = "walltime_s" if site.block.scheduler == "pbs" else "(walltime_s + 59) // 60 * 60"
        yield f"{{%- set asked_s = {seconds} %}}"


def _address(site: Site) -> list[str]:
    """Where the blocks find the endpoint; nothing: they try all addresses of its host."""
    if site.address:
        return [f"  address: {_quoted(site.address)}"]
    if not site.driver_interface:
        return []
    return ["  address:", "    type: address_by_interface", f"    ifname: {_quoted(site.driver_interface)}"]


def _provider(site: Site, choices: EndpointOptions) -> Iterator[str]:
    """The provider's part, with the very options of the batch route's scripts."""
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    made = site.provider("")
    provider: Any = made
    yield "  provider:"
    if isinstance(made, LocalProvider):
        yield "    type: LocalProvider"
    elif isinstance(made, PBSProProvider):
        yield from ["    type: PBSProProvider", "    account: {{ account }}", "    queue: {{ queue }}"]
        yield f"    cpus_per_node: {provider.cpus_per_node}"
        yield f"    select_options: {_quoted(provider.select_options.removeprefix(':'))}"
        yield from _block("    scheduler_options", filter(None, provider.scheduler_options.splitlines()))
    elif isinstance(made, SlurmProvider):
        yield from ["    type: SlurmProvider", "    account: {{ account }}"]
        yield from ["    partition: {{ partition }}", "    qos: {{ qos }}", "    exclusive: false"]
        tasks = f"#SBATCH --ntasks-per-node={provider.tasks_per_node}"  # after Parsl's own, of which there is one
        yield from _block("    scheduler_options", [tasks, *_options(provider.scheduler_options)[0]])
    else:
        raise UserMistake(
            f"sites.{site.name}: an endpoint can be set up for PBS, Slurm and single machines,"
            f" not for {type(made).__name__}"
        )
    yield from _size(site)
    yield from ["    init_blocks: 0", "    min_blocks: 0", "    max_blocks: 1"]
    yield from ["    launcher:", "      type: SimpleLauncher  # one pool on the first node: training starts from there"]
    yield from _worker_init(worker_lines(site, choices), bool(site.block))


def _size(site: Site) -> list[str]:
    if site.block is None:
        return []
    clock = "{{ '%d:%02d:%02d' | format(asked_s // 3600, asked_s % 3600 // 60, asked_s % 60) }}"
    return ["    nodes_per_block: {{ nodes }}", f'    walltime: "{clock}"', f"    cmd_timeout: {COMMAND_TIMEOUT_S}"]


def worker_lines(site: Site, choices: EndpointOptions) -> list[str]:
    """Shell lines before the workers start: no line of them may need the network."""
    assert site.python_env is not None
    values = {**site.environment, "HF_HUB_DISABLE_TELEMETRY": "1"}
    programs = ":".join(shlex.quote(str(folder / "bin")) for folder in (site.python_env, choices.agent))
    return [
        "unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET  # of the agent's account, no business of a job",
        *(site.setup.splitlines() if site.setup else []),
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        f"export PATH={programs}:$PATH",
    ]


def _worker_init(lines: Iterable[str], with_end: bool) -> Iterator[str]:
    """The lines as a text of YAML that Jinja does not read; before them when the block ends."""
    end = [f"export {BLOCK_END_VARIABLE}=$(($(date +%s) + {{{{ walltime_s }}}}))"] if with_end else []
    own = "\n".join(lines)
    yield from _block("    worker_init", [*end, *f"{{% raw %}}{own}{{% endraw %}}".splitlines()])


def _block(key: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"{key}: |"
    yield from (f"      {line}" if line else "" for line in lines)


def _quoted(text: str) -> str:
    return json.dumps(text)


def files_template(site: Site, choices: EndpointOptions) -> str:
    """The same for the endpoint on a login node: one worker, which looks at files and goes when it is not asked."""
    assert site.python_env is not None
    programs = ":".join(shlex.quote(str(folder / "bin")) for folder in (site.python_env, choices.agent))
    lines = [
        f"{{#- crossfed: one worker on a login node of {site.machine}, to look at files. #}}",
        f"heartbeat_period: {HEARTBEAT_S}",
        f"idle_heartbeats_soft: {SPARE_S // HEARTBEAT_S}",
        f"idle_heartbeats_hard: {2 * 3600 // HEARTBEAT_S}",
        "engine:",
        "  type: GlobusComputeEngine",
        f"  label: {_quoted(f'cf-{site.name}-files')}",
        '  address: "127.0.0.1"',
        "  max_workers_per_node: 1",
        "  max_retries_on_system_failure: 0",
        "  encrypted: true",
        "  job_status_kwargs:",
        '    strategy: "simple"',
        "    strategy_period: 5",
        f"    max_idletime: {SPARE_S}",
        "  provider:",
        "    type: LocalProvider",
        *["    init_blocks: 0", "    min_blocks: 0", "    max_blocks: 1"],
        *["    launcher:", "      type: SimpleLauncher"],
        *_worker_init([*site.setup.splitlines(), f"export PATH={programs}:$PATH"], with_end=False),
    ]
    return "\n".join(lines) + "\n"


def schema(site: Site | None) -> dict[str, Any]:
    """``user_config_schema.json``: what a task may bring; None: nothing at all."""
    words = submission(site) if site and site.block else {}
    values: dict[str, Any] = {key: {"type": "string", "pattern": VALUE_PATTERN} for key in words}
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


def core_config(display_name: str) -> str:
    """``config.yaml`` of an agent; it must name no engine, or the agent does not start."""
    settings = {
        "display_name": display_name,
        "amqp_port": 443,  # open where a firewall lets anything out
        "heartbeat_period": HEARTBEAT_S,
        "debug": False,  # its log would hold every task whole
    }
    return yaml.safe_dump(settings, sort_keys=False)


def environment_file(variables: Mapping[str, str]) -> str:
    """``user_environment.yaml``: variables for the scheduler's commands."""
    return yaml.safe_dump(dict(variables), sort_keys=False)

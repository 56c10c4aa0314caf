"""The batch script that a site's endpoint writes with the template of ``setup_site.py``, for display.

The template is rendered as the agent renders it (``globus_compute_endpoint.endpoint.config.utils``: a sandbox of Jinja,
strings as JSON), and the script is written by the same provider of Parsl that the agent's engine uses.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from site_configs.library.site import Site
from workflows.globus.setup.template import (
    EndpointOptions,
    default_agent,
    default_policy,
    own_template_values,
    training_template,
)

POOL = "globus-compute-endpoint python-exec parsl.executors.high_throughput.process_worker_pool ARGUMENTS"
JOB = "parsl.NUMBER"


def endpoint_script(site: Site) -> str:
    """Return the script of a block and the command that submits it; without a batch system, what starts the workers.

    Makes no request.

    Raises:
        UserMistake: the machine has a provider of a kind that endpoints do not have.
    """
    options = rendered(site)["engine"]["provider"]
    if site.block is None:
        return f"{options['worker_init'].rstrip()}\n{POOL}"
    return _batch_script(options)


def rendered(site: Site) -> dict[str, Any]:
    """Return the configuration of the child endpoint: the template rendered with a campaign's values."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    assert site.python_env is not None  # resolved sites have one
    text = training_template(site, EndpointOptions(default_agent(site.python_env), default_policy(site)))
    config = own_template_values(site).items()
    values = {name: json.dumps(value) if isinstance(value, str) else value for name, value in config}
    text = SandboxedEnvironment(undefined=StrictUndefined).from_string(text).render(**values)
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def _batch_script(options: dict[str, Any]) -> str:
    """Return what Parsl's provider submits with these options."""
    from parsl.launchers import SimpleLauncher
    from parsl.providers import PBSProProvider, SlurmProvider

    kinds = {"PBSProProvider": PBSProProvider, "SlurmProvider": SlurmProvider}
    kind, commands = kinds[options["type"]], list[str]()

    def record(_: object, cmd: str, *_rest: object) -> tuple[int, str, str]:
        commands.append(cmd)
        return 0, "Submitted batch job 0", ""

    silent: Any = type(kind.__name__, (kind,), {"execute_wait": record})  # Slurm's runs a command when it is made
    own = {name: value for name, value in options.items() if name not in ("type", "launcher")}
    with TemporaryDirectory() as folder:
        provider = silent(**own, launcher=SimpleLauncher())
        provider.script_dir = folder
        provider.submit(POOL, 1, "parsl")
        (script,) = Path(folder).iterdir()
        text = f"{script.read_text().rstrip()}\n\n# submitted with: {commands[-1]}".replace(script.name, JOB)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).replace(folder, "submit_scripts")

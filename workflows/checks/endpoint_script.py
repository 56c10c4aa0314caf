"""The batch script that a site's endpoint writes, if it has the template of ``setup_site.py``: for people to read.

The template is rendered as the agent does it (``globus_compute_endpoint.endpoint.config.utils``: a sandbox of Jinja,
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
from workflows.globus.setup.template import EndpointOptions, default_agent, training_template, user_endpoint_config

POOL = "globus-compute-endpoint python-exec parsl.executors.high_throughput.process_worker_pool ARGUMENTS"
JOB = "parsl.NUMBER"


def endpoint_script(site: Site) -> str:
    """The script of a block and under it how it is submitted; where there is no batch system, what starts the workers.

    Nothing is asked of anybody.

    Raises:
        UserMistake: the machine has a provider of a kind that endpoints do not have.
    """
    options = rendered(site)["engine"]["provider"]
    if site.block is None:
        return f"{options['worker_init'].rstrip()}\n{POOL}"
    return _written(options)


def rendered(site: Site) -> dict[str, Any]:
    """The configuration of the child endpoint that a campaign's values make of the template."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    assert site.python_env is not None  # resolved sites have one
    text = training_template(site, EndpointOptions(default_agent(site.python_env)))
    sent = user_endpoint_config(site).items()
    values = {name: json.dumps(value) if isinstance(value, str) else value for name, value in sent}
    made = SandboxedEnvironment(undefined=StrictUndefined).from_string(text).render(**values)
    settings: dict[str, Any] = yaml.safe_load(made)
    return settings


def _written(options: dict[str, Any]) -> str:
    """What Parsl's provider submits with these options."""
    from parsl.launchers import SimpleLauncher
    from parsl.providers import PBSProProvider, SlurmProvider

    kinds = {"PBSProProvider": PBSProProvider, "SlurmProvider": SlurmProvider}
    kind, asked = kinds[options["type"]], list[str]()

    def note(_: object, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        asked.append(cmd)
        return 0, "Submitted batch job 0", ""

    silent: Any = type(kind.__name__, (kind,), {"execute_wait": note})  # Slurm's asks the system when it is made
    own = {name: value for name, value in options.items() if name not in ("type", "launcher")}
    with TemporaryDirectory() as folder:
        provider = silent(**own, launcher=SimpleLauncher())
        provider.script_dir = folder
        provider.submit(POOL, 1, "parsl")
        (script,) = Path(folder).iterdir()
        text = f"{script.read_text().rstrip()}\n\n# submitted with: {asked[-1]}".replace(script.name, JOB)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).replace(folder, "submit_scripts")

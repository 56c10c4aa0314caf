"""Text of ``--dry-run``: for each site the batch script that would be submitted and the commands that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

from apps.ranks.launchers import launch_command as ranks_command
from site_configs.library.facility_endpoints import FACILITY_ENDPOINTS
from site_configs.library.site import Site
from workflows.checks.preview import WIDTH
from workflows.planning.labels import shown_name
from workflows.planning.memory.campaign import describe_rounds, describe_site, training_setup
from workflows.planning.memory.model import shape_of
from workflows.planning.plan import Plan
from workflows.runtime.executors import job_prefix, launch_command
from workflows.runtime.worker_start import server_command, server_start, worker_init


def dry_run(plan: Plan, run_dir: Path) -> Iterator[str]:
    """Yield for each site the script that would be submitted, the workers' command, and how training is started."""
    for name, site in plan.sites.items():
        yield f"\n# {'=' * 20} {name}: {site.machine}"
        if site.route == "globus":
            yield from _endpoint_lines(site)
        elif site.block:
            provider, command = submission(site, run_dir)
            yield f"# submitted to {site.block.scheduler}; ADDRESS and PORT are filled in when the campaign starts"
            yield provider.render(command).rstrip()
        else:
            yield f"# started on this machine\n{server_command(server_start(site))}"
        for line in _training_lines(plan, name):
            yield f"# {line}"
    for label in plan.server_blocks:
        site = plan.machines[label]
        provider, command = submission(site, run_dir)
        yield f"\n# {'=' * 20} {shown_name(label)}: {site.machine}"
        yield provider.render(command).rstrip()


def submission(site: Site, run_dir: Path) -> tuple[Any, str]:
    """Return the provider as Parsl would have it, and the command that its jobs run."""
    provider: Any = site.provider(worker_init(site))
    provider.job_prefix = job_prefix("RUN")
    provider.script_dir = str(run_dir / "parsl" / "000" / "submit_scripts")
    return provider, launch_command(site, run_dir)


def _endpoint_lines(site: Site) -> Iterator[str]:
    """Yield what a site's endpoint is sent with each task, and the batch script that it would make of it."""
    from workflows.checks.endpoint_script import endpoint_script  # loads jinja2
    from workflows.globus.setup.template import user_endpoint_config

    assert site.endpoint is not None
    if site.endpoint.template in FACILITY_ENDPOINTS:
        yield f"# {site.endpoint.training}, an endpoint of the facility, is sent with each task"
        for key, value in user_endpoint_config(site).items():
            yield f"{key}: |\n{indent(value, '    ')}" if "\n" in str(value) else f"{key}: {value}"
        return
    sent = ", ".join(f"{key}={value}" for key, value in user_endpoint_config(site).items())
    yield f"# its endpoint {site.endpoint.training} is sent with each task: {sent or 'nothing'}"
    what = "a block's script is" if site.block else "its workers start with"
    yield f"# if it uses the template that setup_site.py writes, {what}"
    yield endpoint_script(site)


def _training_lines(plan: Plan, name: str) -> Iterator[str]:
    """Yield how a site's training is spread over ranks, and how much memory it needs."""
    work = plan.site_work[name]
    if work["parallel"]["nodes"] * work["parallel"]["ranks_per_node"] > 1:
        program = ["python", "-m", "apps.rank", "START"]
        yield f"training: {' '.join(ranks_command(work['parallel'], program))}"
    else:
        yield "training: in the worker itself, one rank"
    if name in plan.memory:
        shape, setup = shape_of(work["model"]), training_setup(plan.campaign)
        for key, text in describe_site(plan.sites[name], plan.memory[name], shape, setup):
            yield f"{key:{WIDTH}s} {text}"
        for text in describe_rounds(plan.sites[name], plan.memory[name], shape, setup, plan.campaign):
            yield f"{'':{WIDTH}s} {text}"

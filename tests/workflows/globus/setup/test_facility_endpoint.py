"""What is sent to an endpoint that a facility runs for all its users: its own names, forms and defaults."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from site_configs.library.resolve import resolve_site
from site_configs.library.site import Site
from workflows.checks.batch_scripts import _endpoint_lines
from workflows.globus.setup.template import user_endpoint_config

ENDPOINT = "9a947ba5-f537-4681-acf3-cc66485aadec"
# of ALCF's guide and its template of June 2026; a value of another name would be dropped in silence
KNOWN = {
    *("queue", "account", "walltime", "nodes_per_block", "max_workers_per_node", "max_idletime", "init_blocks"),
    *("min_blocks", "max_blocks", "launcher_type", "bind_cmd", "overrides", "worker_init", "scheduler_options"),
    *("select_options", "max_retries_on_system_failure", "endpoint_setup"),
}


def site_of(machine: str, **settings: Any) -> Site:
    reached = {"route": "globus", "endpoint": ENDPOINT, "endpoint_template": "alcf", "python_env": "/eagle/ABC/env"}
    given = {"account": "ABC", "storage_root": "/eagle/ABC/crossfed", "carrier": "copy", **reached, **settings}
    return resolve_site("x", machine, Path("/runs/r"), given)


def test_two_nodes_of_polaris_for_three_hours() -> None:
    sent = user_endpoint_config(site_of("polaris", nodes=2, walltime="3h"))
    worker_init = sent.pop("worker_init")
    assert sent == {
        "account": "ABC",
        "queue": "capacity",
        "walltime": "03:00:00",
        "nodes_per_block": 2,
        "init_blocks": 0,
        "min_blocks": 0,
        "max_blocks": 1,
        "max_workers_per_node": 1,
        "max_idletime": 10800,
        "launcher_type": "SimpleLauncher",
        "select_options": "ngpus=4:system=polaris",
        "scheduler_options": "#PBS -r n\n#PBS -l place=scatter\n#PBS -l filesystems=home:eagle",
    }
    lines = worker_init.splitlines()
    assert lines[:3] == [
        "export TMPDIR=/tmp",
        "export PATH=$PATH:/opt/globus-compute-agent/venv-py313/bin",
        "export CROSSFED_BLOCK_END=$(($(date +%s) + 10800))",
    ]
    assert lines[-3:] == [
        "export CROSSFED_SITE_PYTHON=/eagle/ABC/env/bin/python",
        'export CROSSFED_SITE_POLICY="$HOME/.crossfed/site.yaml"',
        "export PATH=/eagle/ABC/env/bin:$PATH",
    ]
    assert "module load conda" in lines and "export http_proxy=http://proxy.alcf.anl.gov:3128" in lines
    assert subprocess.run(["bash", "-n", "-c", worker_init], check=False).returncode == 0


@pytest.mark.parametrize(
    ("machine", "settings", "walltime", "idle_s"),
    [
        ("polaris", {"walltime": "168h"}, "168:00:00", 168 * 3600),
        ("polaris", {"walltime": "1:02:03", "blocks": "per_round"}, "01:02:03", 240),
        ("pbs", {"walltime": "30m", "cores": 64, "gpus": 0}, "00:30:00", 1800),
    ],
)
def test_the_forms_of_all_values(machine: str, settings: dict[str, Any], walltime: str, idle_s: int) -> None:
    sent = user_endpoint_config(site_of(machine, **settings))
    assert sent.keys() <= KNOWN and (sent["walltime"], sent["max_idletime"]) == (walltime, idle_s)
    assert re.fullmatch(r"(#PBS [^\n]+(\n|$))*", sent["scheduler_options"])


def test_the_same_campaign_sends_the_same_values_again() -> None:
    """Another value would start another child, and another block."""
    assert user_endpoint_config(site_of("polaris")) == user_endpoint_config(site_of("polaris"))


def test_a_dry_run_shows_what_is_sent() -> None:
    shown = "\n".join(_endpoint_lines(site_of("polaris", nodes=2, walltime="3h")))
    assert f"# {ENDPOINT}, an endpoint of the facility, is sent with each task\naccount: ABC\n" in shown
    assert "nodes_per_block: 2\n" in shown and "worker_init: |\n    export TMPDIR=/tmp\n" in shown

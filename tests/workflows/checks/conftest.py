"""The plan of a campaign at four machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import PROJECT

from workflows.planning.campaign_file import load_campaign
from workflows.planning.plan import Plan, make_plan

LLAMA = PROJECT / "workflows" / "campaigns" / "smolinstruct_llama2_7b.yaml"
STORAGE = {
    "perlmutter": "/pscratch/sd/a/ada/crossfed",
    "polaris": "/eagle/ABC/crossfed",
    "aurora": "/flare/ABC/crossfed",
    "frontier": "/lustre/orion/abc123/proj-shared/crossfed",
}


@pytest.fixture(scope="module")
def machines() -> list[str]:
    """Settings that the machines need; each is asked for the script of its own batch system."""
    keys = ("account=ABC", "route=null", "data=smolinstruct/data.zip")
    return [f"sites.{name}.{key}" for name, root in STORAGE.items() for key in (*keys, f"storage_root={root}")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry") / "runs" / "llama"


@pytest.fixture(scope="module")
def llama(run_dir: Path, machines: list[str]) -> Plan:
    return make_plan(load_campaign(LLAMA, machines), run_dir, LLAMA)

"""Places of the server's own work: the driver's host, a site of the campaign, a block of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import nano

from apps.base.errors import UserMistake
from workflows.planning.campaign_file import check_campaign
from workflows.planning.plan import Plan, evaluation_settings, make_plan

ENDPOINT = "00000000-0000-4000-8000-000000000000"
CLUSTER = {"config": "slurm", "storage_root": "/scratch", "gpus": 4, "cores": 32, "threads": 8}
BATCH = {"config": "slurm", "storage_root": "/scratch", "tasks": ["molecule_description"], "cores": 6}


def plan(tmp_path: Path, **changes: Any) -> Plan:
    source = tmp_path / "c.yaml"
    sites = {"near": {"config": "local", "tasks": ["chemical_reaction"]}, "far": BATCH}
    return make_plan(check_campaign(nano(**{"sites": sites, **changes}), source), tmp_path / "r", source)


def how(made: Plan) -> dict[str, Any]:
    """Return the settings of evaluation that a user may choose."""
    settings: dict[str, Any] = {**evaluation_settings(made)}
    return {key: settings[key] for key in ("batch_size", "threads", "device")}


def test_by_default_everything_is_on_this_machine(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert (str(made.server_at), str(made.evaluation_at)) == (
        "server (on this machine)",
        "evaluation (on this machine)",
    )
    assert list(made.machines) == ["near", "far", "server", "evaluator"] and made.server_blocks == []
    assert how(made) == {"batch_size": 16, "threads": 1, "device": "cpu"}


def test_a_site_of_the_campaign_lends_its_worker(tmp_path: Path) -> None:
    made = plan(tmp_path, server={"site": "far"}, evaluation={"site": "far"})
    assert (made.server_at.label, str(made.evaluation_at)) == ("far", "evaluation (at far)")
    assert list(made.machines) == ["near", "far"]
    assert how(made) == {"batch_size": 16, "threads": 6, "device": "cpu"}


def test_a_block_of_its_own_keeps_its_files_in_the_run_directory(tmp_path: Path) -> None:
    own = {key: value for key, value in CLUSTER.items() if key != "storage_root"}
    made = plan(tmp_path, server={"site": {**own, "gpus": 0}}, evaluation={"site": own, "batch_size": 4})
    assert made.server_blocks == ["server-block", "evaluator"]
    assert made.evaluation_at.site.block and made.evaluation_at.site.storage_root.is_relative_to(tmp_path)
    assert str(made.evaluation_at).startswith("evaluation (in its own block, ")
    assert how(made) == {"batch_size": 4, "threads": 8, "device": "cuda"}
    assert made.campaign.config_of("evaluator") == "slurm" and made.campaign.config_of("near") == "local"


def test_device_and_threads_of_the_campaign_come_first(tmp_path: Path) -> None:
    made = plan(tmp_path, evaluation={"site": CLUSTER, "device": "cpu", "threads": 3})
    assert how(made) == {"batch_size": 16, "threads": 3, "device": "cpu"}


REMOTE = {
    "config": "local",
    "route": "globus",
    "carrier": "copy",
    "endpoint": ENDPOINT,
    "storage_root": "/data/far",
    "python_env": "/opt/env",
    "tasks": ["molecule_description"],
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation": {"site": "fra"}}, r"evaluation\.site: the campaign has no site 'fra', did you mean 'far'\?"),
        ({"server": {"site": "driver"}}, r"server\.site: the campaign has no site 'driver'; known: near, far"),
        ({"server": {"site": {"nodes": 2}}}, r"server\.site: a block of its own needs a machine: \{config: MACHINE"),
        ({"server": {"site": 3}}, r"server\.site: must be the name of a site, or \{config: MACHINE, \.\.\.\}"),
        ({"server": {"sites": "far"}}, r"server\.sites: unknown key, did you mean 'site'\?"),
        ({"evaluation": {"site": {"config": "slrm"}}}, r"evaluation\.site: unknown site config 'slrm', did you mean"),
        ({"evaluation": {"site": {**CLUSTER, "gpu": 1}}}, r"evaluation\.site: gpu: unknown setting"),
        (
            {"evaluation": {"site": {"config": "polaris"}}},
            r"evaluation\.site: polaris needs account .* evaluation\.site",
        ),
        (
            {"evaluation": {"site": {"config": "polaris", "account": "A", "filesystems": "eagle"}}},
            r"evaluation\.site: the run directory .*/r is on no file system that the block requests",
        ),
        ({"server": {"site": {**CLUSTER, "nodes": 2, "max_nodes": 1}}}, r"server\.site: no queue takes 2 nodes"),
    ],
)
def test_a_mistake_names_the_key_that_the_user_wrote(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=told) as caught:
        plan(tmp_path, **changes)
    assert "sites.evaluator" not in str(caught.value) and "sites.server" not in str(caught.value)


@pytest.mark.parametrize("key", ["server", "evaluation"])
def test_a_site_that_does_not_see_the_run_directory_is_refused(key: str, tmp_path: Path) -> None:
    sites = {"near": {"config": "local", "tasks": ["chemical_reaction"]}, "far": REMOTE}
    told = rf"{key}\.site: far is reached through Globus Compute and does not see the run directory.*block of its own"
    with pytest.raises(UserMistake, match=told):
        plan(tmp_path, sites=sites, **{key: {"site": "far"}})


def test_a_place_is_kept_in_the_campaign_file(tmp_path: Path) -> None:
    from workflows.planning.campaign_file import as_yaml

    made = plan(tmp_path, evaluation={"site": CLUSTER}).campaign
    again = check_campaign(yaml.safe_load(as_yaml(made)), tmp_path)
    assert again == made and again.evaluation.site.settings["threads"] == 8


def test_ranks_evaluate_where_there_are_any(tmp_path: Path) -> None:
    two = {"config": "local", "ranks": 2}
    shared = plan(tmp_path, sites={"near": two, "far": BATCH}, evaluation={"site": "near"})
    settings = evaluation_settings(shared)
    assert settings["parallel"] == shared.site_work["near"]["parallel"]  # so that those that train are kept
    assert settings["root"] == shared.site_work["near"]["root"]
    own = evaluation_settings(plan(tmp_path, evaluation={"site": {**CLUSTER, "nodes": 2, "ranks_per_node": 4}}))
    parallel = own["parallel"]
    assert parallel and (parallel["nodes"], parallel["ranks_per_node"]) == (2, 4)
    assert (parallel["sharding"], parallel["backend"], parallel["launch"][0]) == ("full_shard", "nccl", "srun")
    assert evaluation_settings(plan(tmp_path, evaluation={"site": CLUSTER, "device": "cpu"}))["parallel"] is None
    assert evaluation_settings(plan(tmp_path))["parallel"] is None


def test_the_base_model_of_a_site_is_where_the_site_has_it(tmp_path: Path) -> None:
    sites = {"near": {"config": "local"}, "far": {**BATCH, "model": "/scratch/weights"}}
    assert evaluation_settings(plan(tmp_path, sites=sites, evaluation={"site": "far"}))["source"] == "/scratch/weights"
    assert evaluation_settings(plan(tmp_path, sites=sites, evaluation={"site": "near"}))["source"] == ""

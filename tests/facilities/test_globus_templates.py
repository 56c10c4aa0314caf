"""Tests that a submitter's options reach the batch job through the agent's template."""

from __future__ import annotations

import json
import uuid
from typing import Any

import jinja2
import pytest
import yaml
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect
from patience import patience

from facilities.globus.stack import Stack
from facilities.globus.templates import LOCAL_TEMPLATE, SLURM_TEMPLATE

INIT = "export CROSSFED_WORD='a \"b\"'\nexport CROSSFED_OTHER=c"


def read_words():
    import os

    return [os.environ.get(name) for name in ("CROSSFED_WORD", "CROSSFED_OTHER", "CROSSFED_OWN")]


def rendered(template: str, **options: Any) -> dict[str, Any]:
    """Render a template as the agent does: strings are JSON before they are inserted."""
    given = {name: json.dumps(value) if isinstance(value, str) else value for name, value in options.items()}
    return yaml.safe_load(jinja2.Template(template).render(given))["engine"]


@pytest.mark.parametrize("template", [LOCAL_TEMPLATE, SLURM_TEMPLATE])
def test_options_and_defaults_stay_what_they_are(template: str) -> None:
    assert rendered(template)["provider"]["worker_init"] == "true"
    engine = rendered(template, worker_init=INIT, workers_per_node=3)
    assert (engine["provider"]["worker_init"], engine["max_workers_per_node"]) == (INIT, 3)


def test_the_limits_of_a_batch_job() -> None:
    plain = rendered(SLURM_TEMPLATE)["provider"]
    assert (plain["partition"], plain["walltime"], plain["account"]) == ("debug", "00:10:00", None)
    wide = rendered(SLURM_TEMPLATE, account="fusion", walltime="01:00:00", launcher="SrunLauncher")["provider"]
    assert (wide["account"], wide["walltime"], wide["launcher"]["type"]) == ("fusion", "01:00:00", "SrunLauncher")


@pytest.mark.globus
def test_worker_init_and_the_agents_own_variables_reach_the_worker(globus_client: Stack) -> None:
    agent = globus_client.add_agent("words", variables={"CROSSFED_OWN": "mine"})
    settings = {"client": Client(), "serializer": ComputeSerializer(strategy_code=PureSourceTextInspect())}
    settings |= {"task_group_id": str(uuid.uuid4()), "user_endpoint_config": {"worker_init": INIT}}
    with Executor(agent.endpoint_id, **settings) as running:
        assert running.submit(read_words).result(patience(120)) == ['a "b"', "c", "mine"]

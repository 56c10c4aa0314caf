"""Test ``endpoints.sh`` with a stand-in for the agent, and the genuine agent with the files of ``setup_site.py``.

The stand-in shows that the agent is restarted, has a session of its own and is stopped on request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from patience import patience, wait_until
from training_site import PLACE, PROJECT

from workflows import setup_site
from workflows.globus.compute.messages import pack
from workflows.records.driver_key import driver_key
from workflows.records.journal import Journal
from workflows.trust.orders import Orders

if TYPE_CHECKING:
    from facilities.globus.stack import Stack

AGENT = """#!/bin/bash
# records its calls, and runs until it is stopped
case "$1" in
  start)
    echo "start $2 $$ $(ps -o sid= -p $$) ${GLOBUS_COMPUTE_CLIENT_SECRET:-none} $GLOBUS_COMPUTE_USER_DIR" >> "$CALLS"
    exec sleep 600
    ;;
  stop) kill "$(grep "start $2" "$CALLS" | tail -n 1 | cut -d ' ' -f 3)" ;;
esac
echo "$*" >> "$CALLS"
"""
PAUSE = "pause_s=1"


@pytest.fixture(autouse=True)
def no_login(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own login out of the tests; those with the services have one."""
    if "globus_client" not in request.fixturenames:
        monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "login"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A site set up on this machine, whose agent is the one above; the wait between starts is a second."""
    agent = tmp_path / "agent" / "bin" / "globus-compute-endpoint"
    agent.parent.mkdir(parents=True)
    agent.write_text(AGENT)
    agent.chmod(0o755)
    made = tmp_path / "endpoints"
    given = ["local", "--set", "storage_root=/data", "--set", f"python_env={tmp_path}/env", "--set", "carrier=copy"]
    assert setup_site.main([*given, "--agent", str(agent.parent.parent), "--out", str(made)]) == 0
    script = made / "endpoints.sh"
    assert "pause_s=105\n" in script.read_text()  # more than three heartbeats of 30 s
    script.write_text(script.read_text().replace("pause_s=105", PAUSE))
    yield made
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("CALLS") == str(made / "calls"):
            process.kill()


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), "CALLS": str(folder / "calls")}
    return subprocess.run(
        [str(folder / "endpoints.sh"), command], env=own, capture_output=True, text=True, timeout=patience(60)
    )


def starts(folder: Path, name: str) -> list[list[str]]:
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return [line.split() for line in lines if line.startswith(f"start {name} ")]


def test_agents_are_kept_each_in_its_own_session(folder: Path) -> None:
    began = run(folder, "start")
    assert began.returncode == 0 and "endpoint train: started" in began.stdout and "endpoint files" in began.stdout
    wait_until(lambda: starts(folder, "train") and starts(folder, "files"))
    first = starts(folder, "train")[0]
    assert first[2] == first[3] and first[5] == str(folder)  # it leads a session: what it signals is its own
    assert starts(folder, "files")[0][3] != first[3] != str(os.getsid(0))
    assert "train: runs already" in run(folder, "start").stdout and len(starts(folder, "train")) == 1
    psutil.Process(int(first[2])).kill()
    wait_until(lambda: len(starts(folder, "train")) == 2)
    assert "endpoint train has ended; it is started again in 1 s" in (folder / "train.log").read_text()
    assert "endpoint train: kept on this host" in run(folder, "status").stdout


def test_what_is_stopped_stays_stopped(folder: Path) -> None:
    run(folder, "start")
    wait_until(lambda: starts(folder, "train") and starts(folder, "files"))
    supervisor = psutil.Process(int((folder / "train.supervisor").read_text().split()[1]))
    run(folder, "stop")
    wait_until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE)
    assert "stop train" in (folder / "calls").read_text() and len(starts(folder, "train")) == 1
    assert "endpoint train: not kept on this host" in run(folder, "status").stdout


def test_a_service_accounts_secret_is_read_from_a_closed_file(folder: Path) -> None:
    secret = folder / "account.env"
    secret.write_text("GLOBUS_COMPUTE_CLIENT_ID=me\nGLOBUS_COMPUTE_CLIENT_SECRET=hidden-word\n")
    secret.chmod(0o640)
    refused = run(folder, "start")
    assert refused.returncode == 2 and "account.env can be read by others: chmod 600" in refused.stderr
    assert not starts(folder, "train") and "hidden-word" not in refused.stdout + refused.stderr
    secret.chmod(0o600)
    began = run(folder, "start")
    wait_until(lambda: starts(folder, "train"))
    assert starts(folder, "train")[0][4] == "hidden-word"
    assert "hidden-word" not in began.stdout + began.stderr + (folder / "train.log").read_text()


def test_help(folder: Path) -> None:
    shown = run(folder, "")
    assert shown.returncode == 2 and "start what does not run yet" in shown.stdout and "#" not in shown.stdout


# -- the genuine agent ------------------------------------------------------------------------------------------

JSON = ["globus_compute_sdk.serialize.concretes.JSONData"]
SEEN = """
def seen():
    import json, os, shutil
    names = ("OMP_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY", "PYTHONPATH", "SAID", "CROSSFED_BLOCK_END", "PATH")
    names += ("GLOBUS_COMPUTE_CLIENT_SECRET",)
    return json.dumps({name: os.environ.get(name) for name in names})
"""


@pytest.mark.globus
def test_a_block_of_a_written_endpoint_works(
    globus_client: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training endpoint of a workstation: a task starts its block, which has the site's environment.

    It accepts the function of this project, with JSON, and nothing else.
    """
    from facilities.globus.agents import endpoint_environment
    from globus_compute_sdk import Client
    from globus_compute_sdk.errors import TaskExecutionFailed, TaskPending
    from globus_compute_sdk.serialize import ComputeSerializer, JSONData

    monkeypatch.setenv("CROSSFED_CACHE", str(tmp_path / "cache"))
    agent, out = endpoint_environment(), tmp_path / "crossfed-endpoints" / "local"
    given = [f"storage_root={tmp_path}/data", f"python_env={sys.prefix}", "carrier=copy", "threads=3"]
    sets = [word for text in given for word in ("--set", text)]
    assert setup_site.main(["local", *sets, "--agent", str(agent), "--out", str(out)]) == 0
    assert setup_site.main(["local", *sets, "--agent", str(agent), "--out", str(out)]) == 0
    assert globus_client.service.count_calls("/functions$", "POST") == 1  # registered once, then known
    (ours,) = yaml.safe_load((out / "train" / "config.yaml").read_text())["allowed_functions"]
    client = Client(do_version_check=False, data_serialization_strategy=JSONData())
    seen, other = (client.register_source_code(source=SEEN, function_name="seen") for _ in range(2))
    core = yaml.safe_dump({"allowed_functions": [ours, seen]})  # the second for this test
    text = (out / "train" / "user_config_template.yaml.j2").read_text()
    running = globus_client.add_agent("written", text, {"PYTHONPATH": str(PROJECT)}, core)

    def submit(function: str, *arguments: Any, by: Any = client) -> str:
        batch = by.create_batch(user_endpoint_config={"idle_s": 60}, result_serializers=JSON)
        batch.add(function, arguments)
        return str(by.batch_run(running.endpoint_id, batch)["tasks"][function][0])

    asked: dict[str, Any] = {"function": "apps.site:block_started", "args": [PLACE]}
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        order = Orders(journal, "", "demo", driver_key()).sign(asked)  # the policy names the user's own key
    request = pack(asked["function"], asked["args"], "demo", order)
    tasks = [
        submit(seen),
        submit(ours, request),
        submit(other),
        submit(ours, request, by=Client(do_version_check=False)),
    ]
    client.fx_serializer = ComputeSerializer(strategy_data=JSONData())
    answers: dict[str, Any] = {}

    def all_answered() -> bool:
        for task in set(tasks) - set(answers):
            with suppress(TaskPending):
                try:
                    answers[task] = client.get_result(task)
                except TaskExecutionFailed as error:
                    answers[task] = str(error)
        return len(answers) == len(tasks)

    wait_until(all_answered, 120)
    by_seen, by_ours, by_other, pickled = (answers[task] for task in tasks)
    assert json.loads(by_ours)["result"]["left_s"] is None
    assert "not permitted on endpoint" in by_other and "DeserializationError" in pickled
    log = (tmp_path / "data" / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in log] == ["ok"]
    found = json.loads(by_seen)
    assert (
        found["GLOBUS_COMPUTE_CLIENT_SECRET"] is None
        and found["OMP_NUM_THREADS"] == "3"
        and found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    )
    assert found["PATH"].split(":")[:2] == [f"{sys.prefix}/bin", f"{agent}/bin"]
    assert found["CROSSFED_BLOCK_END"] is None


def test_the_core_configuration_is_that_of_an_agent(folder: Path) -> None:
    for name in ("train", "files"):
        core = yaml.safe_load((folder / name / "config.yaml").read_text())
        usual = {"display_name": core["display_name"], "amqp_port": 443, "heartbeat_period": 30, "debug": False}
        assert core == {**usual, "allowed_functions": []}  # none is known without a login

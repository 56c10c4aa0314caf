"""Tests of the whole route: real SDK, stand-in services, a real RabbitMQ, real agents; and of losses on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.sdk.executor import _RESULT_WATCHERS
from globus_compute_sdk.serialize import ComputeSerializer, PureSourceTextInspect
from globus_sdk import ComputeAPIError
from patience import patience

from facilities.daemons import is_alive, wait_until
from facilities.globus.agents import Agent
from facilities.globus.rabbit import RabbitBroker
from facilities.globus.reaper import marked
from facilities.globus.stack import Stack, globus_stack
from workflows.globus.compute.messages import is_restarting

pytestmark = pytest.mark.globus

TESTS = Path(__file__).resolve().parent.parent
COLD_S = patience(120)  # a first task starts a child, its engine, a block and a worker
ACKNOWLEDGED_S = 1.5  # a child acknowledges what it has taken every half second; until then a task may come twice
DRIVER = """
import sys, time
from facilities.test_globus_stack import executor, mark_and_nap
work = executor(sys.argv[1])
future = work.submit(mark_and_nap, sys.argv[2], 3)
while not future.task_id:
    time.sleep(0.05)
print(work.task_group_id, flush=True)
time.sleep(600)
"""
HELD_OPEN = """
import sys, time
from pathlib import Path
from facilities.globus.stack import globus_stack
with globus_stack(Path(sys.argv[1])) as stack:
    agent = stack.add_agent("orphan")
    print(stack.broker.port, *(process.pid for process in agent.processes()), flush=True)
    time.sleep(600)
"""


def mark_and_nap(path, seconds):
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return os.getpid()


def double(number):
    return 2 * number


def executor(endpoint_id: str, group_id: str | None = None) -> Executor:
    """Return an SDK executor without the client's rate limit, and with its own task group.

    Otherwise the executors of a process share one.
    """
    serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    client = Client(code_serialization_strategy=PureSourceTextInspect())
    settings = {"api_burst_limit": 8, "api_burst_window_s": 1, "task_group_id": group_id or str(uuid.uuid4())}
    return Executor(endpoint_id, client=client, serializer=serializer, **settings)


@contextmanager
def working(endpoint_id: str, group_id: str | None = None) -> Iterator[Executor]:
    """Yield an executor that does not wait for lost tasks at its end: the SDK would, also when the process ends."""
    running = executor(endpoint_id, group_id)
    yield running
    running.shutdown(wait=False, cancel_futures=True)
    watcher = _RESULT_WATCHERS.get(running.task_group_id)
    if watcher is not None:
        watcher.shutdown(wait=False, cancel_futures=True)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_id(future: Any) -> str:
    wait_until("a task's id", lambda: future.task_id is not None)
    return future.task_id


@pytest.fixture(scope="module")
def agent(globus: Stack) -> Agent:
    return globus.add_agent("alpha")


@pytest.fixture
def work(globus_client: Stack, agent: Agent):
    with working(agent.endpoint_id) as running:
        assert running.submit(double, 1).result(COLD_S) == 2
        yield running


def test_a_round_trip(work: Executor, globus: Stack, agent: Agent) -> None:
    futures = [work.submit(double, number) for number in range(20)]
    assert [future.result(COLD_S) for future in futures] == list(range(0, 40, 2))
    child_id = globus.compute.tasks[futures[0].task_id]["endpoint_id"]
    assert set(agent.children()) == {child_id}
    assert len(agent.pools()) == len(agent.workers()) == 1
    assert psutil.pid_exists(agent.pid)


def test_another_driver_fetches_the_result_of_a_killed_one(work: Executor, agent: Agent, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    mark = tmp_path / "ran"
    command = [sys.executable, "-c", DRIVER, agent.endpoint_id, str(mark)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        group_id = driver.stdout.readline().strip()
        wait_until("the task to run", lambda: lines(mark) == 1)
        driver.kill()
    with working(agent.endpoint_id, group_id) as successor:
        (future,) = successor.reload_tasks()
        assert future.result(COLD_S) == int(mark.read_text())
    assert lines(mark) == 1


def test_one_refused_submission_ends_an_executor(work: Executor, globus: Stack) -> None:
    globus.compute.rules.payload_limit_bytes = 50_000
    with pytest.raises(Exception, match="TASK_PAYLOAD_TOO_LARGE"):
        work.submit(double, "x" * 50_000).result(COLD_S)
    globus.compute.rules.payload_limit_bytes = 10_000_000
    with pytest.raises(RuntimeError, match="shutdown"):
        work.submit(double, 1)


def test_a_short_storm_and_too_many_requests_only_delay(work: Executor, globus: Stack) -> None:
    globus.compute.storm(503, count=2, path="/submit$", Retry_After="0")
    globus.service.fault("/submit$", status=429, headers={"Retry-After": "0"})
    assert work.submit(double, 3).result(COLD_S) == 6
    statuses = [call.status for call in globus.service.calls if call.path.endswith("/submit")]
    assert statuses[-4:] == [503, 503, 429, 200]


def test_a_slow_answer_makes_the_task_run_twice(
    work: Executor, agent: Agent, globus: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_SDK_HTTP_TIMEOUT", "1")
    globus.compute.slow_submissions(3)
    mark = tmp_path / "ran"
    with working(agent.endpoint_id) as hasty:
        assert hasty.submit(mark_and_nap, str(mark), 0).result(COLD_S) > 0
        group = globus.compute.tasks_of(str(hasty.task_group_id))
        wait_until("all runs", lambda: all(globus.compute.tasks[task_id]["n_results"] for task_id in group))
    assert lines(mark) == len(group) >= 2


def test_a_dropped_result_is_lost_without_a_message(work: Executor, globus: Stack) -> None:
    globus.compute.rules.drop_results = 1
    lost = work.submit(double, 5)
    task_id = wait_for_id(lost)
    wait_until("the result at the service", lambda: globus.compute.tasks[task_id]["n_results"] == 1)
    assert work.submit(double, 6).result(COLD_S) == 12
    assert not lost.done()
    assert Client().get_task(task_id)["pending"] is True


def test_a_killed_worker_fails_its_task(work: Executor, agent: Agent, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    future = work.submit(mark_and_nap, str(mark), 600)
    wait_until("the task to run", lambda: lines(mark) == 1)
    assert agent.kill_worker() == int(mark.read_text())
    with pytest.raises(TaskExecutionFailed, match="WorkerLost"):
        future.result(COLD_S)
    assert work.submit(double, 4).result(COLD_S) == 8


def test_the_service_comes_back_and_knows_its_tasks(
    work: Executor, agent: Agent, globus: Stack, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    future = work.submit(mark_and_nap, str(mark), 2)
    task_id = wait_for_id(future)
    globus.restart_service()
    assert future.result(COLD_S) == int(mark.read_text())
    assert Client().get_result(task_id) == int(mark.read_text())
    globus.wait_online(agent)


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_the_broker_comes_back_with_the_result(
    work: Executor, agent: Agent, rabbit: RabbitBroker, tmp_path: Path, way: str
) -> None:
    mark = tmp_path / "ran"
    future = work.submit(mark_and_nap, str(mark), patience(4))
    group_id = work.task_group_id
    wait_until("the task to run", lambda: lines(mark) == 1)
    time.sleep(patience(ACKNOWLEDGED_S))
    getattr(rabbit, way)()
    rabbit.start()
    task_id, pid = future.task_id, int(mark.read_text())
    wait_until("the result", finished(Client(), task_id), limit_s=COLD_S)
    assert Client().get_result(task_id) == pid
    with working(agent.endpoint_id, group_id) as successor:
        again: dict[str, Future] = {future.task_id: future for future in successor.reload_tasks()}
        if task_id in again:  # else the first executor still listens, and has it
            assert again[task_id].result(COLD_S) == pid
    assert lines(mark) == 1
    with working(agent.endpoint_id) as anew:
        assert anew.submit(double, 2).result(COLD_S) == 4


def finished(client: Client, task_id: str) -> Callable[[], bool]:
    return lambda: not client.get_task(task_id)["pending"]


def doubled_by_a_new_child(endpoint_id: str) -> int | None:
    """Return twice 7; None while the agent still takes the PID file of the killed child for a living one's.

    A refused submission ends an executor, so each try has one of its own.
    """
    with working(endpoint_id) as anew:
        try:
            return anew.submit(double, 7).result(COLD_S)
        except (TaskExecutionFailed, ComputeAPIError) as error:
            if not is_restarting(str(error)):
                raise
            time.sleep(2)
            return None


def is_without_result(task_id: str) -> bool:
    """Return True for a task that waits for ever, or that a busy agent has answered with its refusal to start again."""
    try:
        return bool(Client().get_task(task_id)["pending"])
    except TaskExecutionFailed as error:
        return is_restarting(str(error))


def test_a_killed_child_loses_its_tasks_without_a_message(
    work: Executor, agent: Agent, globus: Stack, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    lost = work.submit(mark_and_nap, str(mark), patience(5))
    task_id = wait_for_id(lost)
    wait_until("the task to run", lambda: lines(mark) == 1)
    time.sleep(patience(ACKNOWLEDGED_S))
    child_id = globus.compute.tasks[task_id]["endpoint_id"]
    orphans = agent.pools()
    agent.kill_child(child_id)
    assert child_id not in agent.children()
    wait_until("the service to miss it", lambda: not globus.compute.endpoints.is_online(child_id), limit_s=60)
    wait_until("a new child", lambda: doubled_by_a_new_child(agent.endpoint_id) == 14, limit_s=60)
    assert child_id in agent.children()
    assert is_without_result(task_id) and lines(mark) == 1
    assert all(is_alive(pool) for pool in orphans)
    assert len(agent.pools()) == 2


def test_a_killed_agent_starts_again_as_the_same_endpoint(globus_client: Stack) -> None:
    agent = globus_client.add_agent("beta")
    endpoint_id, pid = agent.endpoint_id, agent.pid
    agent.kill()
    agent.start()
    globus_client.wait_online(agent)
    assert agent.endpoint_id == endpoint_id
    assert agent.pid != pid
    with working(endpoint_id) as running:
        assert running.submit(double, 8).result(COLD_S) == 16
        children = agent.processes()
        assert len(children) > 3
    agent.close()
    del globus_client.agents["beta"]
    assert not any(is_alive(process) for process in children)


def test_a_template_that_cannot_be_read_is_reported_to_the_submitter(globus_client: Stack) -> None:
    agent = globus_client.add_agent("gamma", "engine: {{ undefined_option }}\n")
    globus_client.compute.rules.start_wait_s = 30
    with working(agent.endpoint_id) as running:
        with pytest.raises(Exception, match="undefined_option"):
            running.submit(double, 1).result(COLD_S)
    globus_client.agents.pop("gamma").close()


def test_a_second_stack_on_the_broker_is_apart(globus_client: Stack, rabbit: RabbitBroker, short_root: Path) -> None:
    with globus_stack(short_root / "second", rabbit) as other:
        agent = other.add_agent("alpha")
        processes = agent.processes()
        assert other.service.port != globus_client.service.port
        assert agent.endpoint_id not in globus_client.compute.endpoints.known
    assert not any(is_alive(process) for process in processes)


def test_nothing_outlives_a_killed_test_process(short_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-c", HELD_OPEN, str(short_root / f"held{uuid.uuid4().hex[:4]}")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        port, *pids = map(int, owner.stdout.readline().split())
        assert pids
        owner.send_signal(signal.SIGKILL)
    wait_until("the end of the agent", lambda: not any(map(psutil.pid_exists, pids)), limit_s=30)
    listening = [row for row in psutil.net_connections("tcp") if row.status == psutil.CONN_LISTEN]
    assert port not in [row.laddr.port for row in listening]


def test_processes_are_found_by_their_token_only() -> None:
    token = uuid.uuid4().hex
    command = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    environment = {**os.environ, "CROSSFED_FACILITY": token}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert [found.pid for found in marked(token)] == [process.pid]
        assert marked(token[:-1]) == []
        process.kill()

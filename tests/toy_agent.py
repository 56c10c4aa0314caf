"""An endpoint agent without a broker: takes tasks from queues in memory and runs them as a worker does.

Service and client are those of the other tests; only the connection between service and worker is replaced.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facilities.globus.amqp import MemoryQueues
from facilities.globus.auth import Auth
from facilities.globus.compute import Compute
from facilities.globus.endpoints import BLANK
from facilities.globus.http import HttpService
from facilities.globus.stack import client_variables
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, ResultErrorDetails
from globus_compute_sdk.serialize import ComputeSerializer, JSONData

FAILED = ResultErrorDetails(code="RemoteExecutionError", user_message="failed")


class ToyAgent:
    """An agent of one endpoint, in a thread.

    Attributes:
        handle: takes the request of a call and returns the text of its answer; if it raises, the endpoint fails.
        running: tasks wait in their queue while this is not set.
        calls: requests that were carried out.
    """

    def __init__(self, folder: Path, handle: Callable[[str], str]) -> None:
        self.handle, self.running, self.calls, self.ended = handle, threading.Event(), list[str](), threading.Event()
        self.running.set()
        self.service, self.queues = HttpService(), MemoryQueues()
        self.auth = Auth(self.service)
        self.account = self.auth.add_service_account()
        self.compute = Compute(self.service, self.auth, self.queues, folder / "service.sqlite")
        self.endpoint_id = str(uuid.uuid4())
        self.queues.declare(f"{self.endpoint_id}.commands")
        self.buffer: Callable[[str], str] = JSONData().serialize
        self.compute.endpoints.known[self.endpoint_id] = BLANK | {"owner": "", "name": "aurora", "parent": None}
        self.thread = threading.Thread(target=self._work, daemon=True)

    def variables(self, folder: Path) -> dict[str, str]:
        return client_variables(self.service, self.account) | {"GLOBUS_COMPUTE_USER_DIR": str(folder)}

    def beat(self) -> None:
        """Send a heartbeat to the service."""
        report = EPStatusReport(
            endpoint_id=uuid.UUID(self.endpoint_id), global_state={"heartbeat_period": 3600.0}, task_statuses={}
        )
        self.queues.receive("heartbeats", messagepack.pack(report))

    def _work(self) -> None:
        while not self.ended.wait(0.02):
            if self.running.is_set():
                for queue in [name for name in list(self.queues.queues) if name.endswith(".tasks")]:
                    for body, _ in self.queues.taken(queue):
                        self.queues.receive("results", messagepack.pack(self._run(messagepack.unpack(body))))

    def _run(self, task: Any) -> Result:
        _, (request,), keywords = ComputeSerializer().unpack_and_deserialize(task.task_buffer)
        assert keywords == {}
        try:
            self.calls.append(request)
            return Result(task_id=task.task_id, data=self.buffer(self.handle(request)))
        except Exception as error:  # noqa: BLE001 - the endpoint reports any failure
            return Result(task_id=task.task_id, data=f"{type(error).__name__}: {error}", error_details=FAILED)


@contextmanager
def toy_agent(folder: Path, handle: Callable[[str], str]) -> Iterator[ToyAgent]:
    folder.mkdir(parents=True, exist_ok=True)
    agent = ToyAgent(folder, handle)
    with agent.service:
        agent.compute.start()
        agent.beat()
        agent.thread.start()
        yield agent
        agent.ended.set()
        agent.thread.join()
        agent.compute.close()

"""The Globus Compute web service: functions, submissions, results, limits, and injected faults.

Real clients and agents use it. Its records last over a restart of the service; series of errors, slow answers and reset
connections are faults of the ``HttpService`` below it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, ResultErrorDetails, Task

from facilities.globus.amqp import Queues
from facilities.globus.auth import COMPUTE_SERVER, Auth
from facilities.globus.endpoints import UUID, Endpoints
from facilities.globus.http import HttpService, Request, refuse
from facilities.globus.records import Records

MIB = 1024 * 1024
WAITING = "waiting-for-ep"


@dataclass
class ComputeRules:
    """Limits and losses of a service, which may be changed at any time.

    Attributes:
        payload_limit_bytes: limit of the body of a request; more is 413.
        rate: number of requests and seconds, for each identity; more is 429.
        min_version: minimum version of clients and agents; lower ones refuse to work.
        start_wait_s: time for which a submission waits for the start or the error of a child endpoint.
        drop_results: number of the next results that are dropped: their tasks never finish.
        abandon_after_s: older results are deleted, from the queue and from the service.
    """

    payload_limit_bytes: int = 10 * MIB
    rate: tuple[int, float] | None = None
    min_version: str = "1.0.0"
    start_wait_s: float = 0.0
    drop_results: int = 0
    abandon_after_s: float | None = None


class Compute:
    """Routes of the Compute service, and its side of the message queues.

    Attributes:
        rules: limits and losses.
        endpoints: agents and their children.
        functions, tasks, groups: records by their ids; a task has ``status``, ``endpoint_id``, ``task_group_id``,
            ``submitted_at``, ``n_results`` and, once finished, ``finished_at`` and ``result`` or ``exception``.
    """

    def __init__(self, service: HttpService, auth: Auth, queues: Queues, state: Path) -> None:
        self.rules = ComputeRules()
        self.endpoints = Endpoints(service, auth, queues, state, self._subject)
        self.functions, self.tasks = Records(state, "functions"), Records(state, "tasks")
        self.groups = Records(state, "groups")
        self._service, self._auth, self._queues = service, auth, queues
        self._lock = threading.RLock()
        self._requests: dict[str, list[float]] = {}
        for method, pattern, handler in (
            ("GET", "/v2/version", self._version),
            ("GET", "/v2/get_amqp_result_connection_url", self._result_queue),
            ("POST", "/v[23]/functions", self._register_function),
            ("GET", f"/v2/functions/{UUID}", self._describe_function),
            ("DELETE", f"/v2/functions/{UUID}", self._delete_function),
            ("POST", f"/v3/endpoints/{UUID}/submit", self._submit),
            ("GET", f"/v2/tasks/{UUID}", self._task),
            ("POST", "/v2/batch_status", self._batch_status),
            ("GET", f"/v2/taskgroup/{UUID}", self._task_group),
            ("POST", "/_ctl/compute", self._control),
            ("GET", "/_ctl/tasks", lambda _: {key: without_payload(task) for key, task in self.tasks.items()}),
        ):
            service.route(method, pattern, handler)

    def start(self) -> None:
        """Start to receive results and heartbeats."""
        self._queues.listen({"results": self._take_result, "heartbeats": self._take_heartbeat})

    def close(self) -> None:
        self._queues.close()
        for records in (self.endpoints.known, self.functions, self.tasks, self.groups):
            records.close()

    def tasks_of(self, group_id: str) -> list[str]:
        """Return the tasks of a group, in the order of their submission."""
        return [task_id for task_id, task in self.tasks.items() if task["task_group_id"] == group_id]

    def slow_submissions(self, delay_s: float, count: int = 1) -> None:
        """Delay the answers to submissions, so that clients send them again: tasks exist several times."""
        self._service.fault(r"/submit$", method="POST", delay_s=delay_s, count=count, after=True)

    def storm(self, status: int = 503, count: int = 3, path: str = r"^/v[23]/", **headers: str) -> None:
        """Answer a number of calls with an error of the service."""
        self._service.fault(path, status=status, count=count, headers=headers)

    def _subject(self, request: Request) -> str:
        """Return the identity of a request; refuse it if it has sent too many."""
        subject = self._auth.token_of(request, COMPUTE_SERVER).subject
        if self.rules.rate is None:
            return subject
        (count, window_s), now = self.rules.rate, time.monotonic()
        with self._lock:
            recent = [at for at in self._requests.get(subject, []) if at > now - window_s]
            if len(recent) >= count:
                wait_s = str(int(recent[0] + window_s - now) + 1)
                raise refuse(429, "RATE_LIMITED", f"more than {count} requests in {window_s} s", Retry_After=wait_s)
            self._requests[subject] = [*recent, now]
        return subject

    def _check_size(self, request: Request, code: str) -> None:
        nbytes, limit = len(request.body), self.rules.payload_limit_bytes
        if nbytes > limit:
            raise refuse(413, code, f"{nbytes} bytes, the limit is {limit}")

    def _version(self, _: Request) -> Any:
        least = self.rules.min_version
        return {"api": "1.1.0", "funcx": "1.1.0", "min_sdk_version": least, "min_ep_version": least}

    def _result_queue(self, request: Request) -> Any:
        self._subject(request)
        return {"queue_prefix": f"{self._queues.prefix}tg.", "connection_url": self._queues.url}

    def _register_function(self, request: Request) -> Any:
        subject, document = self._subject(request), request.json()
        self._check_size(request, "FUNCTION_TOO_LARGE")
        code = document["function_code"]
        if not document.get("serialized", True):
            source = f"st\n{document['function_name']}:{code}"  # the agent expects plain source packed like the rest
            code = f"{len(source)}\n{source}"
        function_id = str(uuid.uuid4())
        self.functions[function_id] = document | {"owner": subject, "function_code": code}
        return {"function_uuid": function_id}

    def _describe_function(self, request: Request, function_id: str) -> Any:
        self._subject(request)
        return without_payload(self._function(function_id))

    def _delete_function(self, request: Request, function_id: str) -> Any:
        self._subject(request)
        self._function(function_id)
        del self.functions[function_id]
        return {"result": 302}

    def _function(self, function_id: str) -> dict[str, Any]:
        if function_id not in self.functions:
            raise refuse(404, "FUNCTION_NOT_FOUND", f"Function {function_id} unknown")
        return self.functions[function_id]

    def _submit(self, request: Request, endpoint_id: str) -> Any:
        subject, agent_id = self._subject(request), endpoint_id.lower()
        self.endpoints.get(agent_id)
        self._check_size(request, "TASK_PAYLOAD_TOO_LARGE")
        document = request.json()
        for function_id in document["tasks"]:
            self._function(function_id)
        group_id = self._group(subject, document)
        child_id = self.endpoints.child(agent_id, subject, document, self.rules.start_wait_s)
        tasks = {
            function_id: [self._send_task(function_id, payload, child_id, group_id, document) for payload in payloads]
            for function_id, payloads in document["tasks"].items()
        }
        answer = {"request_id": str(uuid.uuid4()), "task_group_id": group_id, "endpoint_id": agent_id}
        return answer | {"tasks": tasks}

    def _group(self, subject: str, document: dict[str, Any]) -> str:
        group_id = document.get("task_group_id") or str(uuid.uuid4())
        with self._lock:
            group = self.groups.setdefault(group_id, {"owner": subject})
        if group["owner"] != subject:
            raise refuse(403, "TASK_GROUP_ACCESS_FORBIDDEN", "a task group of another identity")
        if document.get("create_queue"):
            self._queues.declare(f"{self._queues.prefix}tg.{group_id}")
        return group_id

    def _send_task(self, function_id: str, payload: str, child_id: str, group_id: str, document: dict[str, Any]) -> str:
        task_id = str(uuid.uuid4())
        headers: dict[str, Any] = {"function_uuid": function_id, "task_uuid": task_id}
        if document.get("resource_specification"):
            headers["resource_specification"] = json.dumps(document["resource_specification"])
        if document.get("result_serializers"):
            headers["result_serializers"] = document["result_serializers"]
        record = {"function_id": function_id, "endpoint_id": child_id, "task_group_id": group_id, "status": WAITING}
        self.tasks[task_id] = record | {"submitted_at": time.time(), "n_results": 0}
        code = self.functions[function_id]["function_code"]
        body = messagepack.pack(Task(task_id=task_id, task_buffer=code + payload))
        self._queues.publish(self.endpoints.task_queue(child_id), body, headers=headers)
        return task_id

    def _take_result(self, body: bytes) -> None:
        result = messagepack.unpack(body)
        if not isinstance(result, Result) or str(result.task_id) not in self.tasks:
            return
        task_id = str(result.task_id)
        with self._lock:
            task = self.tasks.update_record(task_id, n_results=self.tasks[task_id]["n_results"] + 1)
            if self.rules.drop_results > 0:
                self.rules.drop_results -= 1
                return
            what, status = ("exception", "failed") if result.is_error else ("result", "success")
            changes = {what: result.data, "details": result.details, "finished_at": time.time()}
            self.tasks.update_record(task_id, status=status, **changes)
        queue = f"{self._queues.prefix}tg.{task['task_group_id']}"
        self._queues.publish(
            queue, body, keep_s=self.rules.abandon_after_s
        )  # without a queue it is available by HTTP only

    def _take_heartbeat(self, body: bytes) -> None:
        report = messagepack.unpack(body)
        failed_id = self.endpoints.heartbeat(report) if isinstance(report, EPStatusReport) else None
        if failed_id is None:
            return
        error = self.endpoints.known[failed_id]["error"]
        for task_id, task in self.tasks.items():
            if task["endpoint_id"] == failed_id and task["status"] == WAITING:
                details = ResultErrorDetails(code="ENDPOINT_START_FAILED", user_message=error)
                self._take_result(messagepack.pack(Result(task_id=task_id, data=error, error_details=details)))

    def _view(self, task_id: str) -> dict[str, Any]:
        task, limit_s = self.tasks[task_id], self.rules.abandon_after_s
        answer = {name: task[name] for name in ("status", "details", "result", "exception") if name in task}
        if "finished_at" in task:
            answer["completion_t"] = str(task["finished_at"])
        if limit_s is not None and time.time() - task.get("finished_at", time.time()) > limit_s:
            answer = {"status": "failed", "reason": "the result was not fetched in time"}
        return {"task_id": task_id} | answer

    def _task(self, request: Request, task_id: str) -> Any:
        self._subject(request)
        if task_id not in self.tasks:
            raise refuse(404, "TASK_NOT_FOUND", f"Task {task_id} unknown")
        return self._view(task_id)

    def _batch_status(self, request: Request) -> Any:
        self._subject(request)
        wanted = request.json()["task_ids"]
        unknown = {"status": "failed", "reason": "unknown task"}
        results = {key: self._view(key) if key in self.tasks else unknown | {"task_id": key} for key in wanted}
        return {"response": "batch", "results": results}

    def _task_group(self, request: Request, group_id: str) -> Any:
        subject = self._subject(request)
        group = self.groups.get(group_id)
        if group is None or group["owner"] != subject:
            raise refuse(404, "TASK_GROUP_NOT_FOUND", f"Task group {group_id} unknown")
        return {"taskgroup_id": group_id, "tasks": [{"id": task_id} for task_id in self.tasks_of(group_id)]}

    def _control(self, request: Request) -> Any:
        """Change settings from another process: any fields of ``ComputeRules``."""
        self.rules = dataclasses.replace(self.rules, **request.json())
        return dataclasses.asdict(self.rules)


def without_payload(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("result", "exception", "function_code")}

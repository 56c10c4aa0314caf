"""Endpoints of a Compute service: agents that register, and the children that they start for submitters."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from globus_compute_common.messagepack.message_types import EPStatusReport

from facilities.globus.amqp import Queues
from facilities.globus.auth import Auth
from facilities.globus.http import HttpService, Request, refuse
from facilities.globus.records import Records

UUID = "([0-9a-fA-F-]{36})"
ASK_AGAIN_S = 5.0  # minimum time between two requests for a child
LOCKED_S = 30.0
BLANK = {"heartbeat_at": 0.0, "period_s": 30.0, "report": {}, "error": None, "asked_at": 0.0, "locked_until": 0.0}


class Endpoints:
    """Registration, status and children of endpoints.

    Args:
        service: service of the routes.
        auth: source of the identities of submitters for agents.
        queues: queues of commands and tasks.
        state: file of the records.
        subject: returns the identity of a request, or refuses it.

    Attributes:
        known: record of each endpoint; children have the id of their agent as ``parent``.
        changed: notified at each heartbeat.
    """

    def __init__(
        self, service: HttpService, auth: Auth, queues: Queues, state: Path, subject: Callable[[Request], str]
    ) -> None:
        self.known, self.changed = Records(state, "endpoints"), threading.Condition(threading.RLock())
        self._auth, self._queues, self._subject = auth, queues, subject
        for method, pattern, handler in (
            ("POST", "/v[23]/endpoints", self._register),
            ("PUT", f"/v3/endpoints/{UUID}", self._register),
            ("GET", "/v2/endpoints", self._list),
            ("GET", f"/v2/endpoints/{UUID}", self._describe),
            ("GET", f"/v2/endpoints/{UUID}/status", self._status),
            ("DELETE", f"/v2/endpoints/{UUID}", self._delete),
            ("POST", f"/v[23]/endpoints/{UUID}/lock", self._lock),
            ("GET", f"/v3/endpoints/{UUID}/allowed_functions", self._allowed_functions),
            ("GET", "/_ctl/endpoints", lambda _: {key: self.summary(key) for key in self.known}),
        ):
            service.route(method, pattern, handler)

    def get(self, endpoint_id: str) -> dict[str, Any]:
        """Return the record of an endpoint; raise 404 if there is none."""
        if endpoint_id.lower() not in self.known:
            raise refuse(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} unknown")
        return self.known[endpoint_id.lower()]

    def is_online(self, endpoint_id: str) -> bool:
        """Return True if it has sent a heartbeat recently and has not signed off since."""
        known = self.known[endpoint_id]
        return time.time() - known["heartbeat_at"] < 2.5 * known["period_s"]

    def summary(self, endpoint_id: str) -> dict[str, Any]:
        known = self.known[endpoint_id]
        return {"name": known["name"], "parent": known["parent"], "online": self.is_online(endpoint_id)}

    def child(self, agent_id: str, subject: str, document: dict[str, Any], wait_s: float) -> str:
        """Return the id of the child for a submitter and a configuration; request its start if it is not online.

        Raises:
            RefusalError: 422, the child could not start and has reported the reason within ``wait_s``.
        """
        options = document.get("user_endpoint_config") or {}
        digest = hashlib.sha256(json.dumps([subject, agent_id, options], sort_keys=True).encode()).hexdigest()
        child_id = str(uuid.UUID(digest[:32]))
        with self.changed:
            if child_id not in self.known:
                name = f"uep.{agent_id}.{digest[:12]}"
                self.known[child_id] = BLANK | {"owner": subject, "name": name, "parent": agent_id}
                self._queues.declare(self.task_queue(child_id))
            if not self.is_online(child_id):
                self._ask_for(child_id, document)
                self.changed.wait_for(lambda: self.is_online(child_id) or self.known[child_id]["error"], wait_s)
            if self.known[child_id]["error"]:
                raise refuse(422, "SEMANTICALLY_INVALID", f"no child endpoint: {self.known[child_id]['error']}")
        return child_id

    def task_queue(self, child_id: str) -> str:
        return f"{self._queues.prefix}{child_id}.tasks"

    def heartbeat(self, report: EPStatusReport) -> str | None:
        """Process the heartbeat of an endpoint; return its id if it reports that it cannot start."""
        endpoint_id, state = str(report.endpoint_id), report.global_state
        with self.changed:
            if endpoint_id not in self.known:
                return None
            period_s, error = float(state.get("heartbeat_period") or 0), state.get("error")
            leaves = error or state.get("active") is False or period_s == 0
            changes = {"report": state, "error": error, "heartbeat_at": 0.0 if leaves else time.time()}
            self.known.update_record(endpoint_id, period_s=period_s or 30.0, **changes)
            self.changed.notify_all()
        return endpoint_id if error else None

    def _ask_for(self, child_id: str, document: dict[str, Any]) -> None:
        known = self.known[child_id]
        if time.time() - known["asked_at"] < ASK_AGAIN_S:
            return
        self.known.update_record(child_id, asked_at=time.time(), error=None)
        command = json.dumps(self._start_command(child_id, document)).encode()
        self._queues.publish(self._command_queue(known["parent"]), command, content_type="application/json")

    def _start_command(self, child_id: str, document: dict[str, Any]) -> dict[str, Any]:
        known, queue = self.known[child_id], self.task_queue(child_id)
        identity = self._auth.identity(known["owner"])
        queues = {"task_queue_info": {"connection_url": self._queues.url, "queue": queue}}
        queues |= {f"{kind}_queue_info": self._publishing(child_id, f"{kind}s") for kind in ("result", "heartbeat")}
        arguments = {"name": known["name"], "amqp_creds": {"endpoint_id": child_id} | queues}
        arguments |= {"user_opts": document.get("user_endpoint_config") or {}}
        arguments |= {"user_runtime": document.get("user_runtime") or {}}
        whom = {"globus_username": identity["username"], "globus_effective_identity": identity["sub"]}
        whom |= {"globus_identity_set": [identity]}
        return {"command": "cmd_start_endpoint", "args": [], "kwargs": arguments} | whom

    def _publishing(self, endpoint_id: str, kind: str) -> dict[str, Any]:
        name = self._queues.prefix + kind
        how = {"exchange": name, "routing_key": f"{endpoint_id}.{kind}", "mandatory": True}
        how |= {"properties": {"delivery_mode": 2}}
        queue = {"connection_url": self._queues.url, "exchange": name, "queue": name}
        return queue | {"queue_publish_kwargs": how}

    def _command_queue(self, agent_id: str) -> str:
        return f"{self._queues.prefix}{agent_id}.commands"

    def _register(self, request: Request, endpoint_id: str = "") -> Any:
        subject, document = self._subject(request), request.json()
        agent_id = (endpoint_id or str(uuid.uuid4())).lower()
        known = self.known.get(agent_id, BLANK | {"owner": subject, "parent": None})
        if known["owner"] != subject:
            raise refuse(403, "ENDPOINT_ACCESS_FORBIDDEN", "registered by another identity")
        if known["locked_until"] > time.time():
            raise refuse(423, "ENDPOINT_LOCKED", "the endpoint is locked")
        given = {name: document.get(name) for name in ("display_name", "multi_user", "allowed_functions")}
        given |= {"name": document.get("endpoint_name"), "metadata": document.get("metadata") or {}}
        self.known[agent_id] = known | given
        queue = self._command_queue(agent_id)
        self._queues.delete(queue)  # commands to its earlier process must not survive
        self._queues.declare(queue)
        commands = {"connection_url": self._queues.url, "queue": queue}
        heartbeats = self._publishing(agent_id, "heartbeats")
        return {"endpoint_id": agent_id, "command_queue_info": commands, "heartbeat_queue_info": heartbeats}

    def _list(self, request: Request) -> Any:
        subject = self._subject(request)
        own = [(key, known) for key, known in self.known.items() if known["owner"] == subject and not known["parent"]]
        return [{"uuid": key, "name": known["name"], "owner": subject} for key, known in own]

    def _describe(self, request: Request, endpoint_id: str) -> Any:
        self._subject(request)
        known = self.get(endpoint_id)
        shown = {name: known.get(name) for name in ("name", "display_name", "multi_user")}
        return {"uuid": endpoint_id} | shown | (known.get("metadata") or {})

    def _status(self, request: Request, endpoint_id: str) -> Any:
        self._subject(request)
        report = self.get(endpoint_id)["report"]
        return {"status": "online" if self.is_online(endpoint_id.lower()) else "offline", "details": report}

    def _delete(self, request: Request, endpoint_id: str) -> Any:
        self._subject(request)
        self.get(endpoint_id)
        del self.known[endpoint_id.lower()]
        return {"result": 302}

    def _lock(self, request: Request, endpoint_id: str) -> Any:
        self._subject(request)
        self.get(endpoint_id)
        self.known.update_record(endpoint_id.lower(), locked_until=time.time() + LOCKED_S)
        return {"result": "locked"}

    def _allowed_functions(self, request: Request, endpoint_id: str) -> Any:
        self._subject(request)
        allowed = self.get(endpoint_id).get("allowed_functions")
        return {"restricted": allowed is not None, "functions": allowed or []}
